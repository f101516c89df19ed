"""The spec file: a model's whole life in one YAML, a section for each command that goes by it.

    build:    fields of BuildConfig
    compose:  engine, output, and fields of ComposeOptions
    deploy:   fields of DeploySpec

Options of the command line go before the file's.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from trierarch.builder.errors import ConfigError, ResourceError


class Section(StrEnum):
    """What a command reads of a spec file."""

    BUILD = "build"
    COMPOSE = "compose"
    DEPLOY = "deploy"


def read_section(path: Path, section: Section) -> dict[str, Any]:
    """What a spec file says in a section.

    Raises:
        ConfigError: it cannot be read, has no such section, or one that no command reads.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--spec is {str(path)!r}, which cannot be read as YAML ({error})") from error
    found = document.get(section) if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise ConfigError(
            f"--spec is {str(path)!r}, and has no section {section.value}: with the fields of trierarch {section.value} below it"
        )
    if unknown := sorted(str(name) for name in document if name not in [*Section]):
        raise ConfigError(f"--spec is {str(path)!r}: section {unknown[0]} is unknown; there are {', '.join(Section)}")
    return found


def write_spec(path: Path, sections: Mapping[Section, Mapping[str, Any]], comments: Iterable[str]) -> None:
    """Write a spec file, whole or not at all; one that is there is replaced.

    sections: values that YAML has. comments: lines to stand above them.

    Raises:
        ResourceError: it cannot be written.
    """
    document = {section.value: dict(fields) for section, fields in sections.items() if fields}
    lines = [f"# {line}".rstrip() for comment in comments for line in comment.splitlines()]
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("\n".join([*lines, text]), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written ({error.strerror or error}); choose another --spec") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
