"""One config.pbtxt of somebody else's repository, filled in and parsed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format

from trierarch.builder.errors import ConfigError
from trierarch.ensembles.model_config import CONFIG_NAME
from trierarch.ensembles.triton_messages import model_config_pb2

_TEMPLATE: Final = re.compile(r"\$\{[^}]*\}")
_UNSET: Final = re.compile(r'string_value:\s*"\$\{[^}"]*\}"')
"""A parameter that was never filled in: TensorRT-LLM's backend reads it as not there, and most repositories have some."""
_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a model's configuration says."""

    model: str
    message: Any
    """Triton's ModelConfig."""
    parameters: Mapping[str, str]
    """Those that have a value; neither empty ones nor unfilled ones, which the backend does not read either."""


def read_configs(repository: Path) -> tuple[ConfigFile, ...]:
    """Every model's, by name.

    Raises:
        ConfigError: there is none, one is no configuration of Triton's, or templates were left in where Triton cannot
            read past them; all of them are named, with file and line.
    """
    paths = sorted(repository.glob(f"*/{CONFIG_NAME}"))
    if not paths:
        raise ConfigError(f"{str(repository)!r} is no model repository: no folder in it has a {CONFIG_NAME}")
    texts = {path: _text(path) for path in paths}
    unfilled = [
        f"{path.relative_to(repository)}:{number}: {template}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        for template in _TEMPLATE.findall(_UNSET.sub("", line.partition("#")[0]))
    ]
    if unfilled:
        raise ConfigError(
            f"{len(unfilled)} templates are not filled in, and Triton would refuse them; import the repository that was "
            "served, or fill them with tools/fill_template.py:\n  " + "\n  ".join(unfilled)
        )
    return tuple(_parse(path, text) for path, text in texts.items())


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path} has more than {_MAX_BYTES} bytes, which no {CONFIG_NAME} has")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _parse(path: Path, text: str) -> ConfigFile:
    try:
        message = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ConfigError(f"{path}: {error}; it is not what Triton reads") from None
    values = {name: entry.string_value for name, entry in sorted(message.parameters.items())}
    set_ones = {name: value for name, value in values.items() if value and not _TEMPLATE.fullmatch(value)}
    return ConfigFile(message.name or path.parent.name, message, set_ones)
