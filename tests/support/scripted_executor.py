"""ScriptedExecutor: an executor that puts out just what a test tells it to."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.adapters.stats import AdapterInfo, AdapterStatus
from trierarch.python_backend.errors import Cancelled, UnknownAdapter
from trierarch.python_backend.executors.executor import ExecutorStats, Sink
from trierarch.python_backend.request import FinishReason, Request, TokenDelta, Usage


class ScriptedExecutor:
    """Implements the Executor protocol without a loop: `emit` and `finish` call the sink on the test's own thread."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.requests: dict[str, Request] = {}
        self.aborted: list[str] = []
        self.known: dict[str, Adapter] = {}
        """name -> adapter"""
        self._sinks: dict[str, Sink] = {}
        self._refusal = refusal

    @property
    def is_healthy(self) -> bool:
        """Always."""
        return True

    def submit(self, request: Request, sink: Sink) -> None:
        """Take the request, or raise the refusal."""
        if self._refusal is not None:
            raise self._refusal
        self.requests[request.request_id] = request
        self._sinks[request.request_id] = sink

    def find_adapter(self, name: str) -> Adapter:
        """One of `known`."""
        if name not in self.known:
            raise UnknownAdapter("adapter", name, "is not registered")
        return self.known[name]

    def adapters(self) -> tuple[AdapterInfo, ...]:
        """All `known`, on disk."""
        return tuple(
            AdapterInfo(name=name, digest=adapter.digest, rank=adapter.manifest.rank, status=AdapterStatus.REGISTERED)
            for name, adapter in sorted(self.known.items())
        )

    def emit(self, request_id: str, *token_ids: int, index: int = 0, **fields: Any) -> None:
        """A delta with these tokens."""
        self._sinks[request_id](TokenDelta(request_id=request_id, index=index, token_ids=token_ids, **fields))

    def finish(
        self,
        request_id: str,
        *token_ids: int,
        index: int = 0,
        reason: FinishReason = FinishReason.LENGTH,
        num: int = 99,
    ) -> None:
        """The last delta of an index, with a usage of `num` output tokens."""
        error = Cancelled("aborted") if reason is FinishReason.CANCELLED else None
        usage = Usage(
            num_prompt_tokens=len(self.requests[request_id].prompt_token_ids),
            num_cached_tokens=0,
            num_output_tokens=num,
            arrival_ns=1,
            first_scheduled_ns=2,
            first_token_ns=3,
            last_token_ns=4,
        )
        self.emit(request_id, *token_ids, index=index, finish_reason=reason, error=error, usage=usage)

    def abort(self, request_id: str) -> None:
        """Note it; the test decides what comes of it."""
        self.aborted.append(request_id)

    def stats(self) -> ExecutorStats:
        """An idle executor with room for 100 tokens."""
        counts = {field.name: 0 for field in fields(ExecutorStats) if field.default is MISSING}
        return ExecutorStats(**counts | {"max_blocks": 10, "tokens_per_block": 10})

    def drain(self, timeout: float) -> bool:
        """There is nothing to wait for."""
        return True

    def close(self) -> None:
        """There is nothing to stop."""
