"""A DeploySpec from a file and from the command line, which wins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from trierarch.builder.errors import ConfigError
from trierarch.kserve.parse_spec import parse_spec
from trierarch.kserve.spec import DeploySpec

SECTION: Final = "deploy"
"""Of a spec file: what belongs to deploying. The file may describe a model's whole life."""


def read_spec(path: Path | None, given: Mapping[str, Any]) -> DeploySpec:
    """The spec of section `deploy` in `path`, with what was `given` on the command line in its place.

    given: dotted field -> value; None was not given.

    Raises:
        ConfigError: the file cannot be read, or the spec is not one.
    """
    raw = {} if path is None else _read(path)
    for field, value in given.items():
        if value is not None:
            _put(raw, field.split("."), value)
    return parse_spec(raw)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--spec is {str(path)!r}, which cannot be read as YAML ({error})") from error
    if not isinstance(document, dict) or not isinstance(document.get(SECTION), dict):
        raise ConfigError(
            f"--spec is {str(path)!r}, and has no section {SECTION}: with the deployment's fields below it"
        )
    section: dict[str, Any] = document[SECTION]
    return section


def _put(raw: dict[str, Any], field: list[str], value: Any) -> None:
    for part in field[:-1]:
        below = raw.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{part} is {below!r}: it has fields, and {'.'.join(field)} is one of them")
        raw = below
    raw[field[-1]] = value
