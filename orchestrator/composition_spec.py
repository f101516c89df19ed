"""CompositionSpec: which engine becomes which repository, from a file and from the command line, which wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from trierarch.builder.errors import ConfigError
from trierarch.ensembles.compose import ComposeOptions
from trierarch.orchestrator.spec_file import Section, read_section

_PLACES: Final = ("engine", "output")


@dataclass(frozen=True, slots=True)
class CompositionSpec:
    """What `trierarch compose` does."""

    engine: Path
    output: Path
    options: ComposeOptions


def read_composition(path: Path | None, given: Mapping[str, Any]) -> CompositionSpec:
    """The section `compose` of the file at `path`, with what was `given` on the command line in its place.

    given: `engine`, `output` or a field of ComposeOptions -> value; None was not given.

    Raises:
        ConfigError: the file cannot be read, a field is unknown or no such value, or a place is missing.
    """
    raw = {} if path is None else read_section(path, Section.COMPOSE)
    known = [*_PLACES, *(field.name for field in fields(ComposeOptions))]
    if unknown := [name for name in raw if name not in known]:
        raise ConfigError(f"compose.{unknown[0]} is unknown; known are {', '.join(known)}")
    raw |= {name: value for name, value in given.items() if value is not None}
    try:
        engine, output = (Path(raw.pop(name)) for name in _PLACES)
        return CompositionSpec(engine, output, TypeAdapter(ComposeOptions).validate_python(raw))
    except KeyError as error:
        raise ConfigError(f"{error.args[0]} is missing; say it here, or in the section compose of --spec") from None
    except TypeError as error:
        raise ConfigError(f"compose: engine and output are paths ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"compose.{field} is {first['input']!r}: {first['msg']}") from None


def section_of(spec: CompositionSpec) -> dict[str, Any]:
    """What the section `compose` of a file has to say for `spec`, in values of YAML; defaults are left out."""
    default = ComposeOptions()
    named = {field.name: getattr(spec.options, field.name) for field in fields(ComposeOptions)}
    chosen = {name: value for name, value in named.items() if value != getattr(default, name)}
    places = {"engine": spec.engine, "output": spec.output}
    written: dict[str, Any] = TypeAdapter(dict[str, Any]).dump_python(places | chosen, mode="json")
    return written
