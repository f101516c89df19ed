"""The executor protocol: all that the translation to Triton, the gateway and the benchmarks know of an executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.adapters.stats import AdapterInfo, AdapterStats
from trierarch.python_backend.executors.kv_event import KvEvent
from trierarch.python_backend.kv.offload_stats import OffloadStats
from trierarch.python_backend.request import Request, TokenDelta
from trierarch.python_backend.scheduling.stats import SchedulerStats
from trierarch.python_backend.speculation.stats import SpeculationStats

Sink = Callable[[TokenDelta], None]
"""Receives a request's deltas in order, on the executor's thread; must neither block nor raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorStats(SchedulerStats):
    """What the scheduler counts and what the process takes; the source of the `nv_trt_llm_*` gauges."""

    memory_bytes: int
    """Resident bytes of the process."""
    gpu_memory_bytes: int = 0
    pinned_memory_bytes: int = 0
    """Of the host's, for copies to and from the GPU."""
    lost_kv_events: int = 0
    """That were dropped before they were read: `cached_blocks` is off by what they told of."""
    micro_batch_id: int = 0
    """Of the last step, where steps are several micro batches."""
    speculation: SpeculationStats | None = None
    """None where the executor never guesses."""
    adapters: AdapterStats | None = None
    """None where the engine takes none."""
    offload: OffloadStats | None = None
    """None where nothing is kept behind the device cache."""


class Executor(Protocol):
    """Runs one engine: requests in, token deltas out. Every method may be called from any thread."""

    @property
    def is_healthy(self) -> bool:
        """Whether it can serve; once it cannot, all its streams have ended, and only another process will."""
        ...

    def submit(self, request: Request, sink: Sink) -> None:
        """Queue a request; its deltas go to `sink`, the last one with a finish reason, whatever happens.

        Raises:
            InvalidRequest: the prompt is empty, too long or out of vocabulary, or the id is taken.
            UnknownAdapter: it has an adapter, and the engine takes none.
            Overloaded: the queue is full, or the executor is draining.
            ExecutorFailed: the executor is not healthy.
        """
        ...

    def find_adapter(self, name: str) -> Adapter:
        """The version of the adapter that `name` means now, for a Request. It reads a file's header at most.

        Raises:
            UnknownAdapter: none of that name is registered, or the engine takes none.
            UnusableAdapter: it is damaged, or does not fit the engine.
        """
        ...

    def adapters(self) -> tuple[AdapterInfo, ...]:
        """All registered adapters, by name. Reads the headers of those that nobody asked for yet: not for every step."""
        ...

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its sequences, with CANCELLED before the next step; a no-op if it is over."""
        ...

    def stats(self) -> ExecutorStats:
        """The latest snapshot; never waits for a step."""
        ...

    def kv_events(self, since: int) -> tuple[KvEvent, ...] | None:
        """What became of cached prefixes, from event number `since` on, in order; None where the engine tells nothing.

        Old events go: one whose first has another number begins after a gap, and whoever follows them starts anew.
        """
        ...

    def drain(self, timeout: float) -> bool:
        """Refuse new requests and wait at most `timeout` seconds; whether all finished. Leftovers end CANCELLED."""
        ...

    def close(self) -> None:
        """Stop the loop; running requests end with CANCELLED. Idempotent."""
        ...
