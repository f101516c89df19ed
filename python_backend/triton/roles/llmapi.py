"""llmapi: the tensors of TensorRT-LLM's last model, for clients that know those."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.triton.llmapi import INPUTS, tell_stopped, translated
from trierarch.python_backend.triton.model_context import ModelContext
from trierarch.python_backend.triton.relay import Relays, Route

_FORWARDED: Final = frozenset(INPUTS.values()) - {"stop"}


class Llmapi:
    """Relays requests; holds no engine."""

    def __init__(self, context: ModelContext) -> None:
        """Read the limits of the engine that is asked.

        Raises:
            EngineError: the model that is to be asked has no engine.
        """
        parameters = context.parameters
        engine = context.in_repository(Path(parameters.tensorrt_llm_model_name, context.version, "engine"))
        route = Route(
            model=parameters.tensorrt_llm_model_name,
            forwarded=_FORWARDED,
            accumulates=True,
            translate=translated,
            tell_stopped=tell_stopped,
        )
        limits = EngineManifest.load(engine).limits
        self._relays = Relays("trierarch-llmapi", route, limits, parameters.cancellation_check_period_ms / 1000)

    def execute(self, requests: list[Any]) -> None:
        """Start relaying."""
        self._relays.execute(requests)

    def close(self) -> None:
        """Let the running relays end, then stop."""
        self._relays.close()
