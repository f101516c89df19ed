"""CapturedStep: a static step as a CUDA graph: the host starts hundreds of kernels with one call."""

from __future__ import annotations

from typing import Any, Final

import torch

from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.static_step import StaticStep

_NUM_WARM_UPS: Final = 2
"""Runs before the capture: kernels are compiled and chosen, which a capture would not survive."""


class CapturedStep:
    """Captured when it is made; `replay` is what `StaticStep.fill` and `run` are together."""

    def __init__(self, step: StaticStep, pool: Any) -> None:
        """pool: torch.cuda.graph_pool_handle() of all graphs that never run at once.

        Raises:
            RuntimeError: something in the step cannot be captured.
        """
        self._step = step
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_NUM_WARM_UPS):
                step.run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may load an adapter meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._states = step.run()

    def replay(self, batch: InputBatch) -> list[torch.Tensor]:
        """Compute `batch`. What comes back is overwritten by the next replay of any graph of the pool."""
        self._step.fill(batch)
        self._graph.replay()
        return self._states


class ReplayedStep:
    """The same by running the step again: slow and obvious, on any device."""

    def __init__(self, step: StaticStep, pool: Any) -> None:
        self._step = step

    def replay(self, batch: InputBatch) -> list[torch.Tensor]:
        """See CapturedStep.replay."""
        self._step.fill(batch)
        return self._step.run()
