"""A model repository with every configuration completed, so that Triton need not ask the models for theirs.

Triton's auto-complete starts a process for each Python model, waits for all of them and starts others to serve: 1.7 s
of a start here (docs/log.md). What the backend would answer is known without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format

from trierarch.builder.errors import ConfigError
from trierarch.ensembles.adapter_model import DIRECTORIES
from trierarch.ensembles.model_config import BACKEND, CONFIG_NAME
from trierarch.ensembles.triton_messages import model_config_pb2
from trierarch.orchestrator.kv_tiers import AS_THE_REPOSITORY_SAYS, KvTiers
from trierarch.python_backend.triton.auto_complete import complete
from trierarch.python_backend.triton.contract import Role
from trierarch.python_backend.triton.model_config import role_of
from trierarch.python_backend.triton.path_list import paths_of, text_of

UPLOADS: Final = "adapter_upload_directory"
PREFIXES: Final = "prefix_cache_directory"
COMPLETE_PLATFORMS: Final = frozenset({"ensemble"})
"""Models that Triton serves without a backend to ask."""


def complete_repository(
    repository: Path,
    target: Path,
    adapters: Sequence[Path] = (),
    uploads: Path | None = None,
    prefixes: Path | None = None,
    tiers: KvTiers = AS_THE_REPOSITORY_SAYS,
) -> bool:
    """Write `repository` to `target` with completed configurations, its versions linked; whether that could be done.

    It cannot where a model is of another backend, which may want to be asked; nothing is written then.

    adapters: directories of adapters that are looked into after those that the configurations name.
    uploads: where clients' adapters are kept if the configuration names no place.
    prefixes: where cached prefixes are kept if the configuration names no place; None forgets them then.
    tiers: what lies behind the KV cache, whatever the configuration says of it; of each model in a directory of its name.

    Raises:
        ConfigError: a configuration cannot be read, or a model has no role.
    """
    configs = {path.parent: _read(path) for path in sorted(repository.glob(f"*/{CONFIG_NAME}"))}
    if not all(config.backend == BACKEND or config.platform in COMPLETE_PLATFORMS for config in configs.values()):
        return False
    for model, config in configs.items():
        if config.backend == BACKEND:
            completable = _Completable(config, model.name)
            complete(completable)
            role = role_of(completable.as_dict())
            _add_adapters(config, role, adapters, uploads)
            if prefixes is not None and role is Role.TENSORRT_LLM and PREFIXES not in config.parameters:
                config.parameters[PREFIXES].string_value = str(prefixes / model.name)
            if role is Role.TENSORRT_LLM:
                for name, value in tiers.of(model.name).parameters().items():
                    config.parameters[name].string_value = value
        place = target / model.name
        place.mkdir(parents=True)
        (place / CONFIG_NAME).write_text(text_format.MessageToString(config), encoding="utf-8")
        for version in model.iterdir():
            if version.name != CONFIG_NAME:
                (place / version.name).symlink_to(version.resolve())
    return True


class _Completable:
    """A configuration as auto-complete sees it in Triton, where it is a `pb_utils.ModelConfig`."""

    def __init__(self, message: Any, name: str) -> None:
        """message: Triton's ModelConfig, changed in place; `name` is the model's where the file gives none."""
        self._message = message
        message.name = message.name or name

    def as_dict(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "name": self._message.name,
            "max_batch_size": self._message.max_batch_size,
            "parameters": {
                name: {"string_value": value.string_value} for name, value in self._message.parameters.items()
            },
        }
        if self._message.HasField("model_transaction_policy"):
            config["model_transaction_policy"] = {"decoupled": self._message.model_transaction_policy.decoupled}
        return config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        self._message.max_batch_size = max_batch_size

    def add_input(self, tensor: dict[str, Any]) -> None:
        _add(self._message.input, tensor)

    def add_output(self, tensor: dict[str, Any]) -> None:
        _add(self._message.output, tensor)

    def set_model_transaction_policy(self, policy: dict[str, bool]) -> None:
        self._message.model_transaction_policy.decoupled = policy["decoupled"]


def _add_adapters(config: Any, role: Role, adapters: Sequence[Path], uploads: Path | None) -> None:
    if adapters and role in (Role.TENSORRT_LLM, Role.ADAPTER):
        named = paths_of(config.parameters[DIRECTORIES].string_value)
        assert isinstance(named, list)
        config.parameters[DIRECTORIES].string_value = text_of([*named, *(str(path.resolve()) for path in adapters)])
    if uploads is not None and role is Role.TENSORRT_LLM and UPLOADS not in config.parameters:
        config.parameters[UPLOADS].string_value = str(uploads)


def _add(tensors: Any, tensor: dict[str, Any]) -> None:
    if tensor["name"] not in {one.name for one in tensors}:
        tensors.add(**tensor | {"data_type": model_config_pb2.DataType.Value(tensor["data_type"])})


def _read(path: Path) -> Any:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); compose the repository again: trierarch compose"
        ) from error
