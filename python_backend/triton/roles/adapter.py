"""adapter: one adapter as a model of its own. Both doors of tensorrt_llm, with `lora_name` as good as given."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.adapters.directory import AdapterDirectories
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.triton.adapter_inputs import read_adapter
from trierarch.python_backend.triton.contract import TENSORRT_LLM
from trierarch.python_backend.triton.inputs import Array, Inputs
from trierarch.python_backend.triton.model_context import ModelContext
from trierarch.python_backend.triton.relay import Relays, Route

_OWN: Final = frozenset({"lora_name", "lora_task_id", "lora_weights", "lora_config", "stop"})
_FORWARDED: Final = frozenset(tensor.name for tensor in TENSORRT_LLM.inputs) - _OWN


class Adapter:
    """Relays requests; holds no engine, and reads no weights."""

    def __init__(self, context: ModelContext) -> None:
        """See that the adapter is there and fits, so that a model that loads can serve.

        Raises:
            AdapterError: it is not, or does not.
            EngineError: the model that is to be asked has no engine.
        """
        parameters = context.parameters
        name = parameters.adapter or context.name
        engine = context.in_repository(Path(parameters.tensorrt_llm_model_name, context.version, "engine"))
        manifest = EngineManifest.load(engine)
        directories = tuple(context.in_repository(path) for path in parameters.adapter_directories)
        _check(name, engine, manifest, directories)
        route = Route(
            model=parameters.tensorrt_llm_model_name,
            forwarded=_FORWARDED,
            fixed={"lora_name": partial(_column, name)},
            check=partial(_check_adapter, name),
        )
        period = parameters.cancellation_check_period_ms / 1000
        self._relays = Relays("trierarch-adapter", route, manifest.limits, period)

    def execute(self, requests: list[Any]) -> None:
        """Start relaying."""
        self._relays.execute(requests)

    def close(self) -> None:
        """Let the running relays end, then stop."""
        self._relays.close()


def _check(name: str, engine: Path, manifest: EngineManifest, directories: tuple[Path, ...]) -> None:
    if manifest.lora is None:
        raise AdapterError(
            f"adapter {name!r}: engine {manifest.name!r} takes none; rebuild it with --max-adapters 1 or more"
        )
    try:
        AdapterDirectories(directories, engine, manifest).look(name)
    except InvalidRequest as error:
        raise AdapterError(str(error)) from error


def _check_adapter(name: str, inputs: Inputs) -> None:
    asked = read_adapter(inputs)
    if asked.upload is not None:
        raise InvalidRequest(
            "lora_weights", asked.upload.weights.shape, f"this model is adapter {name!r}; send them to tensorrt_llm"
        )
    if asked.name not in ("", name):
        raise InvalidRequest(
            asked.tensor, asked.name, f"this model is adapter {name!r}; leave it out, or ask tensorrt_llm"
        )


def _column(name: str, num_rows: int) -> Array:
    return np.full((num_rows, 1), name.encode(), np.object_)
