"""Pages of metrics of several servers as one: each family once, each sample with the server that it is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

LABEL: Final = "engine"


@dataclass(slots=True)
class _Family:
    comments: dict[bytes, bytes] = field(default_factory=dict)
    """HELP and TYPE -> the line of the first page that has it."""
    samples: list[bytes] = field(default_factory=list)


def merged(pages: Mapping[str, bytes]) -> bytes:
    """One page of the pages of servers, by name, in Prometheus's text format.

    Two servers of one kind have the same series; without a label of their own, all but one would be lost.
    """
    families: dict[bytes, _Family] = {}
    for server, page in pages.items():
        value = server.replace("\\", "\\\\").replace('"', '\\"')
        label = f'{LABEL}="{value}"'.encode()
        name = b""
        for line in page.splitlines():
            if line.startswith((b"# HELP ", b"# TYPE ")):
                name = line.split(b" ", 3)[2]
                families.setdefault(name, _Family()).comments.setdefault(line[2:6], line)
            elif line and not line.startswith(b"#"):
                families.setdefault(name, _Family()).samples.append(_labelled(line, label))
    lines = [line for family in families.values() for line in (*family.comments.values(), *family.samples)]
    return b"".join(line + b"\n" for line in lines)


def _labelled(sample: bytes, label: bytes) -> bytes:
    """`name{labels} value` or `name value`, with one label more."""
    name, brace, rest = sample.partition(b"{")
    if brace:
        return name + b"{" + label + (b"" if rest.startswith(b"}") else b",") + rest
    name, _, value = sample.partition(b" ")
    return name + b"{" + label + b"} " + value
