"""Translating: a model that has other tensors, and asks `tensorrt_llm` in its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.triton.model_context import ModelContext
from trierarch.python_backend.triton.relay import Relays, Route


class Translating:
    """Relays requests; holds no engine."""

    def __init__(self, context: ModelContext, name: str, **route: Any) -> None:
        """Read the limits of the engine that is asked. `name` is the model's role; route: fields of Route but for the model.

        Raises:
            EngineError: the model that is to be asked has no engine.
        """
        parameters = context.parameters
        asked = parameters.tensorrt_llm_model_name
        limits = EngineManifest.load(context.in_repository(Path(asked, context.version, "engine"))).limits
        period = parameters.cancellation_check_period_ms / 1000
        self._relays = Relays(f"trierarch-{name}", Route(model=asked, **route), limits, period)

    def execute(self, requests: list[Any]) -> None:
        """Start relaying."""
        self._relays.execute(requests)

    def close(self) -> None:
        """Let the running relays end, then stop."""
        self._relays.close()
