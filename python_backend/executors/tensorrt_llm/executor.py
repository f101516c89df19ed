"""TensorRTLLMExecutor: requests into TensorRT-LLM's LLM API, token deltas out of it.

One thread of ours has an event loop, makes the LLM in it, and makes all calls. Each sequence is a task on that loop and a
request of its own to the library. Whoever ends a sequence (its last step, an abort, its deadline, the engine's death) has
its stream send the last delta at once, and only then has the library told; so every stream ends, whatever the library
does afterwards.

Drafts that come with a request, and how many may be guessed for it, are accepted and change nothing: they never change an
answer, and the library takes neither. So with the priority, in the releases before 1.3.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from trierarch.builder.errors import AdapterError
from trierarch.builder.manifest import EngineManifest
from trierarch.builder.tensorrt_llm.compatibility import check_servable
from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.adapters.loader import AdapterLoader
from trierarch.python_backend.adapters.registry import AdapterRegistry
from trierarch.python_backend.adapters.stats import AdapterInfo
from trierarch.python_backend.errors import (
    Cancelled,
    ExecutorFailed,
    InvalidRequest,
    Overloaded,
    ServingError,
    ShuttingDown,
    UnknownAdapter,
    UnusableAdapter,
)
from trierarch.python_backend.executors.executor import ExecutorStats, Sink
from trierarch.python_backend.executors.kv_event import KvEvent
from trierarch.python_backend.executors.logits_budget import LogitsBudget
from trierarch.python_backend.executors.machine import resident_bytes
from trierarch.python_backend.executors.tensorrt_llm.abilities import Abilities
from trierarch.python_backend.executors.tensorrt_llm.adapter_line import AdapterLine
from trierarch.python_backend.executors.tensorrt_llm.admission import Admission
from trierarch.python_backend.executors.tensorrt_llm.disk_adapter import DiskAdapters
from trierarch.python_backend.executors.tensorrt_llm.drain import Drain
from trierarch.python_backend.executors.tensorrt_llm.engine_loop import EngineLoop
from trierarch.python_backend.executors.tensorrt_llm.iteration_stats import IterationStats
from trierarch.python_backend.executors.tensorrt_llm.kv_events import EventCounts, KvEvents
from trierarch.python_backend.executors.tensorrt_llm.library import Library
from trierarch.python_backend.executors.tensorrt_llm.llm import LLM
from trierarch.python_backend.executors.tensorrt_llm.sampling import end_ids_of
from trierarch.python_backend.executors.tensorrt_llm.sender import Sender
from trierarch.python_backend.executors.tensorrt_llm.stream import Shape, Stream
from trierarch.python_backend.request import FinishReason, Request
from trierarch.python_backend.scheduling.admission import NO_ADAPTERS, queue_is_full

_PATIENCE_SECONDS: Final = 1.0
"""A sequence whose adapter finds no place is overtaken for so long."""


@dataclass(slots=True)
class _Live:
    """A request, and those of its sequences that run."""

    request: Request
    streams: dict[int, Stream] = field(default_factory=dict)
    """index -> stream"""


class TensorRTLLMExecutor:
    """Implements the Executor protocol."""

    def __init__(
        self,
        manifest: EngineManifest,
        abilities: Abilities,
        library: Library,
        open_llm: Callable[[], LLM],
        adapters: tuple[AdapterRegistry, DiskAdapters] | None = None,
    ) -> None:
        """Open the LLM and serve it.

        adapters: what the engine's are found by and written to; None where it takes none.

        Raises:
            EngineError, ResourceError: what `open_llm` raises.
        """
        self._manifest = manifest
        self._admission = Admission(manifest, abilities)
        self._registry = None if adapters is None else adapters[0]
        self._disk = None if adapters is None else adapters[1]
        self._iterations = IterationStats(manifest.speculation.drafters[0] if manifest.speculation else None)
        self._events = KvEvents() if _tells_events(manifest) else None
        self._shape = Shape(
            block_size=manifest.kv_cache.block_size,
            vocab_size=manifest.architecture.vocab_size,
            gathers_logits=abilities.gathers_logits,
        )
        self._logits_budget = LogitsBudget(manifest.architecture.vocab_size, keeps_prompts=True)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._live: dict[str, _Live] = {}
        self._num_sequences = 0
        self._is_draining = False
        self._is_closing = False
        self._death: str | None = None
        line = None if self._registry is None else AdapterLine(self._registry.pool, _PATIENCE_SECONDS)
        sender = Sender(library, manifest, line, abilities.salts_prompts)
        self._loop = EngineLoop(open_llm, sender, self._drains, self._die)
        self._loader: AdapterLoader | None = None
        if self._registry is not None and line is not None:
            advance = line.advance
            self._loader = AdapterLoader(self._registry.pool.cache, lambda: self._loop.post(advance))

    @property
    def is_healthy(self) -> bool:
        """See Executor.is_healthy."""
        return self._death is None and self._loop.is_alive

    def submit(self, request: Request, sink: Sink) -> None:
        """See Executor.submit."""
        self._admission.check(request)
        end_ids = end_ids_of(request.sampling, self._manifest.tokens.eos)
        streams = [
            Stream(request, index, end_ids, sink, self._shape, self._forget) for index in range(request.sampling.n)
        ]
        with self._changed:
            self._check_open(request)
            self._logits_budget.check(request)
            self._logits_budget.hold(request)
            self._live[request.request_id] = _Live(request, dict(enumerate(streams)))
            self._num_sequences += len(streams)
        for stream in streams:
            self._loop.post(self._loop.begin, stream)

    def find_adapter(self, name: str) -> Adapter:
        """See Executor.find_adapter."""
        if self._registry is None:
            raise UnknownAdapter("adapter", name, NO_ADAPTERS)
        adapter = self._registry.find(name)
        try:
            check_servable(adapter.manifest)
        except AdapterError as error:
            raise UnusableAdapter("adapter", name, str(error)) from error
        return adapter

    def adapters(self) -> tuple[AdapterInfo, ...]:
        """See Executor.adapters."""
        if self._registry is None:
            return ()
        return self._registry.infos(self._requests())

    def abort(self, request_id: str, index: int | None = None) -> None:
        """See Executor.abort."""
        self._loop.post(self._abort, request_id, index)

    def stats(self) -> ExecutorStats:
        """See Executor.stats. What concerns a step is of the latest one that the library told of."""
        with self._lock:
            requests = [live.request for live in self._live.values()]
            num_slots = sum(
                len(live.request.prompt_token_ids) + stream.num_tokens
                for live in self._live.values()
                for stream in live.streams.values()
            )
        told, has_work = self._iterations, bool(requests)
        block_size = told.kv_cache("tokensPerBlock") or self._manifest.kv_cache.block_size
        max_blocks = told.kv_cache("maxNumBlocks")
        # The last step of all was told before it gave its blocks back.
        used_blocks = has_work * told.kv_cache("usedNumBlocks")
        scheduled = min(has_work * told.in_flight("numScheduledRequests"), len(requests))
        adapters = None
        if self._registry is not None:
            adapters = self._registry.with_registered(self._registry.pool.stats(requests))
        events: EventCounts = {} if self._events is None else self._events.counts()
        return ExecutorStats(
            num_active_requests=len(requests),
            num_scheduled_requests=scheduled,
            num_context_requests=min(has_work * told.in_flight("numContextRequests"), scheduled),
            num_context_tokens=has_work * told.in_flight("numCtxTokens"),
            num_paused_requests=has_work * told.in_flight("numPausedRequests"),
            max_requests=told.general("maxNumActiveRequests") or self._manifest.limits.max_batch_size,
            num_steps=told.num_steps,
            max_blocks=max_blocks,
            used_blocks=used_blocks,
            free_blocks=max(0, max_blocks - used_blocks),
            reused_blocks=told.num_reused_blocks,
            tokens_per_block=block_size,
            used_slots=min(num_slots, used_blocks * block_size),
            memory_bytes=resident_bytes(),
            gpu_memory_bytes=told.general("gpuMemUsage"),
            pinned_memory_bytes=told.general("pinnedMemUsage"),
            micro_batch_id=told.in_flight("microBatchId"),
            speculation=told.speculation(),
            adapters=adapters,
            **events,
        )

    def kv_events(self, since: int) -> tuple[KvEvent, ...] | None:
        """See Executor.kv_events."""
        return None if self._events is None else self._events.since(since)

    def drain(self, timeout: float) -> bool:
        """See Executor.drain."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._is_draining = True
            while self._live and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            unfinished = list(self._live)
        for request_id in unfinished:
            self.abort(request_id)
        return not unfinished

    def close(self) -> None:
        """See Executor.close."""
        with self._lock:
            self._is_closing = True
        self._loop.post(self._end_all, FinishReason.CANCELLED, Cancelled("the server is shutting down"))
        self._loop.close()
        if self._loader is not None:
            self._loader.close()
        if self._disk is not None:
            self._disk.close()

    def _drains(self, llm: LLM) -> Iterator[Drain]:
        yield Drain("the statistics", llm.get_stats_async, self._iterations.take)
        if self._events is not None:
            yield Drain("the events of the KV cache", llm.get_kv_cache_events_async, self._events.take)

    def _check_open(self, request: Request) -> None:
        """Raise unless one more request is taken; under the lock."""
        if self._death is not None:
            raise ExecutorFailed(self._dead())
        if self._is_draining or self._is_closing:
            raise ShuttingDown("the server is shutting down and takes no new requests; retry elsewhere")
        if request.request_id in self._live:
            raise InvalidRequest("request_id", request.request_id, "is in use; give each live request its own")
        limits = self._manifest.limits
        num_waiting = max(0, self._num_sequences - limits.max_batch_size)
        if num_waiting >= limits.max_queue_size and not request.is_continuation:
            raise Overloaded(queue_is_full(limits.max_queue_size))

    def _requests(self) -> list[Request]:
        with self._lock:
            return [live.request for live in self._live.values()]

    def _abort(self, request_id: str, index: int | None) -> None:
        with self._lock:
            live = self._live.get(request_id)
            streams = [] if live is None else [s for i, s in live.streams.items() if index in (None, i)]
        for stream in streams:
            self._loop.cut(stream, FinishReason.CANCELLED, Cancelled(f"request {request_id!r} was cancelled"))

    def _forget(self, stream: Stream) -> None:
        with self._changed:
            live = self._live[stream.request.request_id]
            del live.streams[stream.index]
            self._num_sequences -= 1
            if not live.streams:
                del self._live[stream.request.request_id]
                self._logits_budget.release(stream.request.request_id)
                self._changed.notify_all()

    def _die(self, reason: str) -> None:
        with self._lock:
            self._death = reason
        self._end_all(FinishReason.ERROR, ExecutorFailed(self._dead()))

    def _end_all(self, reason: FinishReason, error: ServingError) -> None:
        with self._lock:
            streams = [stream for live in self._live.values() for stream in live.streams.values()]
        for stream in streams:
            self._loop.cut(stream, reason, error)

    def _dead(self) -> str:
        return (
            f"the engine has failed ({self._death}) and serves nothing until the model is loaded anew; retry elsewhere"
        )


def _tells_events(manifest: EngineManifest) -> bool:
    """Whether an engine was built so that the library tells of what it caches."""
    record = manifest.tensorrt_llm
    kv_cache = None if record is None else record.llm_args.get("kv_cache_config")
    return isinstance(kv_cache, dict) and bool(kv_cache.get("event_buffer_max_size"))
