"""tensorrt_llm_bls: the text door through business-logic scripting, for clients that name this model."""

from __future__ import annotations

from typing import Any, Final

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.triton.contract import ENSEMBLE
from trierarch.python_backend.triton.model_context import ModelContext
from trierarch.python_backend.triton.relay import Relays, Route

_FORWARDED: Final = frozenset(tensor.name for tensor in ENSEMBLE.inputs)


class TensorrtLlmBls:
    """Relays requests; holds no engine."""

    def __init__(self, context: ModelContext) -> None:
        """Read the engine's limits."""
        parameters = context.parameters
        route = Route(
            model=parameters.tensorrt_llm_model_name,
            forwarded=_FORWARDED,
            accumulates=parameters.accumulate_tokens,
        )
        limits = EngineManifest.load(context.engine).limits
        self._relays = Relays("trierarch-bls", route, limits, parameters.cancellation_check_period_ms / 1000)

    def execute(self, requests: list[Any]) -> None:
        """Start relaying."""
        self._relays.execute(requests)

    def close(self) -> None:
        """Let the running relays end, then stop."""
        self._relays.close()
