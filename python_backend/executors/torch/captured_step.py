"""CapturedStep: a static step as a CUDA graph: the host starts hundreds of kernels with one call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import torch

from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.static_step import StaticStep

_NUM_WARM_UPS: Final = 2
"""Runs before the capture: kernels are compiled and chosen, which a capture would not survive."""


@dataclass(frozen=True, slots=True)
class GraphPool:
    """What graphs that never run at once share: memory, and the stream that they are captured on.

    torch allocates a workspace of cuBLAS for each stream that it multiplies on, so there is one.
    """

    handle: Any = field(default_factory=torch.cuda.graph_pool_handle)
    stream: torch.cuda.Stream = field(default_factory=torch.cuda.Stream)


class CapturedStep:
    """Captured when it is made; `replay` is what `StaticStep.fill` and `run` are together."""

    def __init__(self, step: StaticStep, pool: GraphPool) -> None:
        """Capture.

        Raises:
            RuntimeError: something in the step cannot be captured.
        """
        self._step = step
        pool.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(pool.stream):
            for _ in range(_NUM_WARM_UPS):
                step.run()
        torch.cuda.current_stream().wait_stream(pool.stream)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may load an adapter meanwhile.
        with torch.cuda.graph(self._graph, pool.handle, pool.stream, "thread_local"):
            self._states = step.run()

    def replay(self, batch: InputBatch) -> list[torch.Tensor]:
        """Compute `batch`. What comes back is overwritten by the next replay of any graph of the pool."""
        self._step.fill(batch)
        self._graph.replay()
        return self._states


class ReplayedStep:
    """The same by running the step again: slow and obvious, on any device."""

    def __init__(self, step: StaticStep, pool: object) -> None:
        self._step = step

    def replay(self, batch: InputBatch) -> list[torch.Tensor]:
        """See CapturedStep.replay."""
        self._step.fill(batch)
        return self._step.run()
