"""AdapterPool: what the scheduler asks for so that sequences find their adapters in memory and in a slot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum, auto

from trierarch.builder.errors import AdapterError
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.adapters.cache import AdapterCache
from trierarch.python_backend.adapters.slots import AdapterSlots
from trierarch.python_backend.adapters.stats import AdapterStats, AdapterStatus
from trierarch.python_backend.errors import ExecutorFailed, ServingError, UnusableAdapter
from trierarch.python_backend.request import Request


class Readiness(Enum):
    """Whether a sequence of an adapter could start."""

    READY = auto()
    LOADING = auto()
    """It is loaded, or will be, however long others run."""
    BLOCKED = auto()
    """Those that run must make room first."""


class AdapterPool:
    """A cache and slots. The scheduler's own, but for the cache: an adapter is pinned as often as it is acquired."""

    def __init__(self, cache: AdapterCache, num_slots: int) -> None:
        """Nothing is active."""
        self.cache = cache
        self.slots = AdapterSlots(num_slots)
        self._needed: frozenset[str] = frozenset()

    def prefer(self, adapters: Iterable[Adapter]) -> None:
        """Load these, the most urgent first, and keep their slots if others have to lose theirs."""
        adapters = list(adapters)
        self._needed = frozenset(adapter.digest for adapter in adapters)
        self.cache.prefer(adapters)

    def readiness(self, adapter: Adapter) -> Readiness:
        """Of a sequence that would start now."""
        if self.cache.get(adapter.digest) is None:
            return Readiness.BLOCKED if self.cache.is_stuck(adapter.digest) else Readiness.LOADING
        return Readiness.READY if self.slots.has_room(adapter.digest) else Readiness.BLOCKED

    def error(self, adapter: Adapter) -> ServingError | None:
        """Why its requests end; None if it can be loaded as far as is known."""
        error = self.cache.error(adapter.digest)
        if error is None:
            return None
        if isinstance(error, AdapterError):
            return UnusableAdapter("adapter", adapter.name, _reason(error))
        return ExecutorFailed(f"adapter {adapter.name!r}: {_reason(error)}")

    def acquire(self, adapter: Adapter) -> ActiveAdapter | None:
        """What a sequence runs with until it is released; None if it is not in memory any more, or finds no slot."""
        if not self.slots.has_room(adapter.digest):
            return None
        loaded = self.cache.pin(adapter.digest)
        return None if loaded is None else self.slots.acquire(adapter.digest, loaded, self._needed)

    def release(self, active: ActiveAdapter) -> None:
        """A sequence has stopped running with it."""
        self.slots.release(active.digest)
        self.cache.unpin(active.digest)

    def status(self, digest: str) -> tuple[AdapterStatus, str]:
        """Where a version stands, and if it failed, why. Any thread."""
        if self.slots.is_active(digest):
            return AdapterStatus.ACTIVE, ""
        if self.cache.get(digest) is not None:
            return AdapterStatus.LOADED, ""
        error = self.cache.error(digest)
        return (AdapterStatus.REGISTERED, "") if error is None else (AdapterStatus.FAILED, _reason(error))

    def stats(self, requests: Iterable[Request]) -> AdapterStats:
        """A snapshot, given all that live."""
        cache = self.cache
        adapters = [request.adapter for request in requests if request.adapter is not None]
        running = {adapter.name for adapter in adapters if self.slots.is_active(adapter.digest)}
        return AdapterStats(
            max_adapters=self.slots.num_slots,
            num_loaded=cache.num_loaded,
            num_active=self.slots.num_active,
            loaded_bytes=cache.num_bytes,
            running=tuple(sorted(running)),
            waiting=tuple(sorted({adapter.name for adapter in adapters} - running)),
            num_loads=cache.num_loads,
            num_load_failures=cache.num_failures,
            num_evictions=cache.num_evictions,
            load_seconds=cache.load_seconds,
            load_durations=cache.load_durations,
        )

    def check_integrity(self, running: Iterable[ActiveAdapter]) -> None:
        """Raise IntegrityError unless exactly these, one for each running sequence, are held and pinned."""
        num_holders = Counter(active.digest for active in running)
        self.slots.check_integrity(num_holders)
        self.cache.check_integrity(num_holders)


def _reason(error: Exception) -> str:
    """What strangers may hear of it."""
    if isinstance(error, AdapterError):
        return str(error)
    return f"it could not be loaded ({type(error).__name__}); see the server's log"
