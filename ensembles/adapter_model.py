"""An adapter as a model of a repository: a configuration, and a version directory with nothing in it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format

from trierarch.builder.errors import ConfigError, ResourceError
from trierarch.ensembles.model_config import BACKEND, CONFIG_NAME, KEEP, VERSION, ModelConfig
from trierarch.ensembles.triton_messages import model_config_pb2
from trierarch.python_backend.triton.contract import Role
from trierarch.python_backend.triton.path_list import paths_of

DIRECTORIES: Final = "adapter_directories"


def adapter_model(name: str, directories: Mapping[str, str], is_decoupled: bool | None) -> ModelConfig:
    """The configuration of one; `directories` is the parameter that says where adapters are, if there is one."""
    return ModelConfig(name=name, parameters={"role": Role.ADAPTER, **directories}, is_decoupled=is_decoupled)


def add_adapter_model(repository: Path, name: str) -> bool:
    """Write a model for the adapter `name` into a repository, whole or not at all; False if it is there already.

    Raises:
        ConfigError: `repository` serves no engine, or something else has that name.
        ResourceError: it cannot be written.
    """
    place = repository / name
    main = _read(repository / Role.TENSORRT_LLM)
    if place.exists():
        if not is_adapter_model(repository, name):
            raise ConfigError(f"{name!r} is another model of {repository}; give the adapter another name")
        return False
    directories = {DIRECTORIES: main.parameters[DIRECTORIES].string_value} if DIRECTORIES in main.parameters else {}
    has_policy = main.HasField("model_transaction_policy")
    config = adapter_model(name, directories, main.model_transaction_policy.decoupled if has_policy else None)
    staging = repository / f".{name}.{secrets.token_hex(4)}.writing"
    try:
        (staging / VERSION).mkdir(parents=True)
        (staging / VERSION / KEEP).touch()
        (staging / CONFIG_NAME).write_text(config.to_pbtxt(), encoding="utf-8")
        os.rename(staging, place)
    except OSError as error:
        raise ResourceError(f"{place} cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return True


def remove_adapter_model(repository: Path, name: str) -> None:
    """Take the model of an adapter out of a repository, where it is there.

    Raises:
        ConfigError: something else has that name.
        ResourceError: it cannot be removed.
    """
    place = repository / name
    if not place.exists():
        return
    if not is_adapter_model(repository, name):
        raise ConfigError(f"{name!r} is another model of {repository}; name the model of an adapter")
    try:
        shutil.rmtree(place)
    except OSError as error:
        raise ResourceError(f"{place} cannot be removed ({error.strerror or error})") from error


def is_adapter_model(repository: Path, name: str) -> bool:
    """Whether the model of that name serves an adapter."""
    config = _read(repository / name)
    return bool(config.backend == BACKEND and config.parameters["role"].string_value == Role.ADAPTER)


def adapter_directories(repository: Path) -> tuple[Path, ...]:
    """Where a repository's engine finds adapters, its own apart.

    Raises:
        ConfigError: `repository` serves no engine.
    """
    named = paths_of(_read(repository / Role.TENSORRT_LLM).parameters[DIRECTORIES].string_value)
    assert isinstance(named, list)
    return tuple(repository.resolve() / path for path in named)


def _read(model: Path) -> Any:
    try:
        text = (model / CONFIG_NAME).read_text(encoding="utf-8")
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ConfigError(
            f"{model} is no model of a repository ({error}); name a repository that trierarch compose wrote"
        ) from error
