"""A DeploySpec from a file and from the command line, which wins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trierarch.builder.errors import ConfigError
from trierarch.kserve.parse_spec import parse_spec
from trierarch.kserve.spec import DeploySpec
from trierarch.orchestrator.spec_file import Section, read_section


def read_spec(path: Path | None, given: Mapping[str, Any]) -> DeploySpec:
    """The spec of section `deploy` in `path`, with what was `given` on the command line in its place.

    given: dotted field -> value; None was not given.

    Raises:
        ConfigError: the file cannot be read, or the spec is not one.
    """
    raw = {} if path is None else read_section(path, Section.DEPLOY)
    for field, value in given.items():
        if value is not None:
            _put(raw, field.split("."), value)
    return parse_spec(raw)


def _put(raw: dict[str, Any], field: list[str], value: Any) -> None:
    for part in field[:-1]:
        below = raw.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{part} is {below!r}: it has fields, and {'.'.join(field)} is one of them")
        raw = below
    raw[field[-1]] = value
