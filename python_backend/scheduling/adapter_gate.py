"""AdapterGate: which waiting sequences may start, as far as their adapters go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.adapters.pool import AdapterPool, Readiness
from trierarch.python_backend.errors import ServingError
from trierarch.python_backend.request import Request
from trierarch.python_backend.scheduling.queue import WaitingQueue
from trierarch.python_backend.sequence import Sequence


class AdapterGate:
    """Lets the most urgent start first, as far as adapters are there, and sees to it that they come.

    A sequence whose adapter is being loaded is passed over: others do not wait for a disk. One whose adapter finds no
    place, since those that run hold all slots or all memory, is overtaken by those behind it that need none or have one;
    but only for so long. Then nobody behind it starts, so that sooner or later enough of those that run have ended.
    Either way steps go on with few different adapters, and none of them is changed for each other again and again.
    """

    def __init__(self, pool: AdapterPool, patience_seconds: float) -> None:
        """`patience_seconds`: for how long a sequence that finds no place is overtaken."""
        self._pool = pool
        self._patience_ns = patience_seconds * 1e9
        self._seen: tuple[int, int] | None = None  # changes of the queue, and failures

    def look_ahead(self, waiting: WaitingQueue) -> list[tuple[Request, ServingError]]:
        """Let the first adapters that are waited for be loaded, as many as have slots; whom none will be loaded for."""
        seen = waiting.num_changes, self._pool.cache.num_failures
        if seen == self._seen:
            return []
        self._seen = seen
        if not waiting.num_adapted:
            self._pool.prefer(())
            return []
        adapters: dict[str, Adapter] = {}
        refused: dict[str, tuple[Request, ServingError]] = {}
        has_failures = self._pool.cache.has_failures
        for sequence in waiting:
            request = sequence.request
            if request.adapter is None:
                continue
            if has_failures and (error := self._pool.error(request.adapter)) is not None:
                refused[request.request_id] = request, error
            elif len(adapters) < self._pool.slots.num_slots:
                adapters.setdefault(request.adapter.digest, request.adapter)
            elif not has_failures:
                break
        self._pool.prefer(adapters.values())
        return list(refused.values())

    def startable(self, waiting: Iterable[Sequence], now: int) -> Iterator[Sequence]:
        """Those of `waiting` that may start at `now`, each judged when it is its turn."""
        is_claimed = False
        for sequence in waiting:
            adapter = sequence.request.adapter
            readiness = Readiness.READY if adapter is None else self._pool.readiness(adapter)
            if readiness is Readiness.READY:
                yield sequence
                continue
            if readiness is Readiness.BLOCKED and sequence.blocked_ns is None:
                sequence.blocked_ns = now
            if adapter is None or sequence.blocked_ns is None or now - sequence.blocked_ns < self._patience_ns:
                continue
            if readiness is Readiness.BLOCKED:
                return
            if not is_claimed:  # Its place is free now, and shall not be taken again, least of all by those behind it.
                self._pool.cache.claim(adapter.digest)
                is_claimed = True
