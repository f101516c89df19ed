"""Reads a Triton log for people: the reason a server did not start, or its last lines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

TAIL_LINES: Final = 20
LOAD_FAILURE: Final = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.+?)\"?$")


def failure(log: Path, start: int = 0) -> str:
    """Why the server ended: the first model that failed to load and its own words, else the log's last lines.

    start: the bytes of the log that are of other servers.
    """
    ended = f"tritonserver ended before it was ready; its log's last lines ({log}):\n{tail(log)}"
    return load_failure(log, start) or ended


def load_failure(log: Path, start: int = 0) -> str | None:
    """The first model that failed to load and its own words; None where none has."""
    for line in _lines(log, start):
        if match := LOAD_FAILURE.search(line):
            reason = match["reason"].split("\\n")[0]
            return f"model {match['model']!r} did not load: {reason}; the whole log is at {log}"
    return None


def tail(log: Path) -> str:
    """The log's last lines, indented."""
    return "\n".join(f"  {line}" for line in _lines(log)[-TAIL_LINES:])


def _lines(log: Path, start: int = 0) -> list[str]:
    try:
        return log.read_bytes()[start:].decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
