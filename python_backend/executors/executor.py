"""The executor protocol: all that the translation to Triton, the gateway and the benchmarks know of an executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from trierarch.python_backend.request import Request, TokenDelta

Sink = Callable[[TokenDelta], None]
"""Receives a request's deltas in order, on the executor's thread; must neither block nor raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorStats:
    """A snapshot between two steps; the source of the `nv_trt_llm_*` gauges."""

    num_active_requests: int
    """Waiting or running."""
    num_scheduled_requests: int
    """In the last step."""
    num_context_requests: int
    """Of those, still computing their prompt."""
    num_context_tokens: int
    """Prompt tokens computed by the last step."""
    num_paused_requests: int
    """Preempted and not yet back."""
    max_requests: int
    num_steps: int
    max_blocks: int
    used_blocks: int
    """Held by running sequences."""
    free_blocks: int
    """Free at once, cached prefixes nobody holds included."""
    reused_blocks: int
    """Prefix hits since start, in blocks."""
    tokens_per_block: int
    used_slots: int
    """KV slots of used blocks that hold a token; 1 - used_slots / (used_blocks * tokens_per_block) is waste."""
    memory_bytes: int
    """Resident bytes of the process."""


class Executor(Protocol):
    """Runs one engine: requests in, token deltas out. Every method may be called from any thread."""

    def submit(self, request: Request, sink: Sink) -> None:
        """Queue a request; its deltas go to `sink`, the last one with a finish reason, whatever happens.

        Raises:
            InvalidRequest: the prompt is empty, too long or out of vocabulary, or the id is taken.
            UnknownAdapter: no adapter of that digest is loaded.
            Overloaded: the queue is full, or the executor is draining.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request with CANCELLED before the next step; nothing happens if it is unknown or over."""
        ...

    def stats(self) -> ExecutorStats:
        """The latest snapshot; never waits for a step."""
        ...

    def drain(self, timeout: float) -> bool:
        """Refuse new requests and wait at most `timeout` seconds; whether all finished. Leftovers end CANCELLED."""
        ...

    def close(self) -> None:
        """Stop the loop; running requests end with CANCELLED. Idempotent."""
        ...
