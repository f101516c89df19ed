"""AdapterCache: the adapters that are in memory, within a budget of bytes.

What is wanted stands in a line, the most urgent first. Whoever runs `load_next` loads the first one that finds room. Room
is made by letting go of what nobody has pinned: first of what nobody wants, the longest unused first, then of what stands
further back in the line than the one that needs room, from its end. So the line never takes its own head's place, and
what is pinned is never let go of: a load waits rather than take more than the budget.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Final

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.errors import AdapterError
from trierarch.python_backend.adapters.active_adapter import Arranged
from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.adapters.stats import NUM_LOAD_DURATIONS
from trierarch.python_backend.kv.integrity import require

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5.0
"""A version that could not be loaded is tried again for whoever asks this much later."""
_MAX_FAILURES: Final = 1024
"""Remembered at most; the oldest are forgotten first."""

Arrange = Callable[[AdapterTensors], Arranged]
"""See Runner.arrange."""
ArrangeDraft = Callable[[Adapter, AdapterTensors], Arranged | None]
"""What the draft model runs with where the served one runs with this adapter; None is as it is. It raises nothing."""


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """A version in memory."""

    weights: Arranged
    draft_weights: Arranged | None = None

    @property
    def num_bytes(self) -> int:
        """Of memory that both take."""
        return self.weights.num_bytes + (0 if self.draft_weights is None else self.draft_weights.num_bytes)


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception
    time: float


class AdapterCache:
    """Keyed by digest. Any thread may call it; none but the one in `load_next` waits for a disk."""

    def __init__(
        self,
        max_bytes: int,
        arrange: Arrange,
        arrange_draft: ArrangeDraft | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Empty. `clock`: seconds."""
        self.max_bytes = max_bytes
        self.num_loads = self.num_failures = self.num_evictions = 0
        self.load_seconds = 0.0
        self._arrange = arrange
        self._arrange_draft = arrange_draft
        self._clock = clock
        self._changed = threading.Condition()
        self._durations: deque[float] = deque(maxlen=NUM_LOAD_DURATIONS)
        self._loaded: OrderedDict[str, LoadedAdapter] = OrderedDict()  # the longest unused first
        self._num_bytes = 0  # taken by all of them
        self._pins: Counter[str] = Counter()
        self._wanted: dict[str, Adapter] = {}  # the most urgent first; also what is loaded
        self._needs: dict[str, int] = {}  # bytes of what was found larger than it looked, and is wanted
        self._failures: dict[str, _Failure] = {}
        self._loading: str | None = None
        self._reserved_bytes = 0  # for what is being loaded
        self._claimed: str | None = None
        self._claimed_bytes = 0  # for what is to be loaded next
        self._is_closed = False

    def want(self, adapter: Adapter) -> None:
        """Put it at the end of the line, if it is not in it. One that failed is tried again once that is long ago."""
        with self._changed:
            failure = self._failures.get(adapter.digest)
            if failure is not None and self._clock() - failure.time >= RETRY_SECONDS:
                del self._failures[adapter.digest]
            self._wanted.setdefault(adapter.digest, adapter)
            if adapter.digest not in self._loaded:
                self._changed.notify_all()

    def prefer(self, adapters: Iterable[Adapter]) -> None:
        """Let the line be these, the most urgent first."""
        with self._changed:
            self._wanted = {adapter.digest: adapter for adapter in adapters}
            self._needs = {digest: need for digest, need in self._needs.items() if digest in self._wanted}
            if self._claimed not in self._wanted:
                self._claimed, self._claimed_bytes = None, 0
            self._changed.notify_all()

    def get(self, digest: str) -> LoadedAdapter | None:
        """What is loaded; it may be let go of at any time."""
        with self._changed:
            return self._loaded.get(digest)

    def pin(self, digest: str) -> LoadedAdapter | None:
        """Keep it until as many `unpin`s; None if it is not loaded."""
        with self._changed:
            loaded = self._loaded.get(digest)
            if loaded is not None:
                self._pins[digest] += 1
                self._loaded.move_to_end(digest)
            return loaded

    def unpin(self, digest: str) -> None:
        """Take one pin back."""
        with self._changed:
            self._pins[digest] -= 1
            if self._pins[digest] == 0:
                del self._pins[digest]
                self._loaded.move_to_end(digest)
                self._changed.notify_all()

    def error(self, digest: str) -> Exception | None:
        """Why it could not be loaded: an AdapterError, or something that nobody foresaw. None if it may yet be."""
        with self._changed:
            failure = self._failures.get(digest)
            return None if failure is None else failure.error

    @property
    def has_failures(self) -> bool:
        """Whether anything has an `error`."""
        return bool(self._failures)

    def is_stuck(self, digest: str) -> bool:
        """Whether it is wanted, and cannot be loaded before others are unpinned or no longer wanted more urgently."""
        with self._changed:
            if digest in self._loaded or digest == self._loading or digest not in self._wanted:
                return False
            coming = self._reserved_bytes + self._claimed_bytes  # once that is loaded, it can be let go of
            return self._victims(digest, self._need(self._wanted[digest]) - coming) is None

    def claim(self, digest: str) -> None:
        """Make room for what is wanted now, if there can be any, and keep it until it is loaded or not wanted any more.

        Otherwise whoever starts before the loader comes to it could pin what it would have let go of, again and again.
        There is one claim at a time.
        """
        with self._changed:
            if digest not in self._wanted or digest in self._loaded or digest in (self._loading, self._claimed):
                return
            self._claimed, self._claimed_bytes = None, 0
            need = self._need(self._wanted[digest])
            victims = self._victims(digest, need)
            if victims is not None:
                self._let_go(victims)
                self._claimed, self._claimed_bytes = digest, need
                self._changed.notify_all()

    def load_next(self) -> bool:
        """Load the first of the line that finds room, on the calling thread; whether there was one. One at a time."""
        with self._changed:
            adapter = self._next()
            if adapter is None:
                return False
            need = self._need(adapter)
            self._let_go(self._victims(adapter.digest, need) or [])
            self._loading, self._reserved_bytes = adapter.digest, need
            if self._claimed == adapter.digest:
                self._claimed, self._claimed_bytes = None, 0
        started = self._clock()
        loaded, failure = None, None
        try:
            loaded = self._load(adapter)
        except AdapterError as error:
            logger.warning("adapter %s cannot be used: %s", adapter.name, error)
            failure = _Failure(error, self._clock())
        except Exception as error:  # An adapter that finds no memory ends those who asked for it, and nothing else.
            logger.exception("adapter %s could not be loaded", adapter.name)
            failure = _Failure(error, self._clock())
        with self._changed:
            self._loading, self._reserved_bytes = None, 0
            if loaded is not None:
                self._keep(adapter.digest, loaded, self._clock() - started)
            elif failure is not None:
                self._fail(adapter.digest, failure)
        return True

    def wait(self) -> bool:
        """Wait until `load_next` would load something; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._next() is not None)
            return not self._is_closed

    def close(self) -> None:
        """Let `wait` return, and everything go that is not pinned."""
        with self._changed:
            self._is_closed = True
            self._wanted.clear()
            self._let_go([digest for digest in self._loaded if digest not in self._pins])
            self._changed.notify_all()

    @property
    def num_loaded(self) -> int:
        """Versions in memory."""
        return len(self._loaded)

    @property
    def num_bytes(self) -> int:
        """Taken by them."""
        return self._num_bytes

    @property
    def load_durations(self) -> tuple[float, ...]:
        """Seconds of the latest loads that succeeded, the last one last."""
        with self._changed:
            return tuple(self._durations)

    def check_integrity(self, num_pins: Counter[str]) -> None:
        """Raise IntegrityError unless the pins are these, on what is loaded, within the budget."""
        with self._changed:
            require(self._pins == num_pins, f"adapters have pins {self._pins}, and holders {num_pins}")
            require(self._pins.keys() <= self._loaded.keys(), "an adapter is pinned and not loaded")
            num_bytes = sum(loaded.num_bytes for loaded in self._loaded.values())
            require(self._num_bytes == num_bytes, "bytes of adapters are miscounted")
            num_bytes += self._reserved_bytes + self._claimed_bytes
            require(num_bytes <= self.max_bytes, "adapters take more than their budget")

    def _need(self, adapter: Adapter) -> int:
        """Bytes to keep free for it: what it looks like, until more is known."""
        return min(self._needs.get(adapter.digest, adapter.num_bytes), self.max_bytes)

    def _next(self) -> Adapter | None:
        """The first that can be loaded now."""
        if self._loading is not None:
            return None
        for digest, adapter in self._wanted.items():
            is_due = digest not in self._loaded and digest not in self._failures
            if is_due and self._victims(digest, self._need(adapter)) is not None:
                return adapter
        return None

    def _victims(self, digest: str, num_bytes: int) -> list[str] | None:
        """Whom to let go of so that `num_bytes` more are free for `digest`; None if that would not do."""
        missing = self._num_bytes + self._reserved_bytes + num_bytes - self.max_bytes
        missing += self._claimed_bytes if digest != self._claimed else 0
        unwanted = (other for other in self._loaded if other not in self._wanted)
        behind = takewhile(lambda other: other != digest, reversed(self._wanted)) if digest in self._wanted else ()
        victims: list[str] = []
        for other in chain(unwanted, behind):
            if missing <= 0:
                break
            if other in self._loaded and other not in self._pins:
                victims.append(other)
                missing -= self._loaded[other].num_bytes
        return victims if missing <= 0 else None

    def _let_go(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self._num_bytes -= self._loaded.pop(digest).num_bytes
            self.num_evictions += 1

    def _load(self, adapter: Adapter) -> LoadedAdapter:
        tensors = adapter.read()
        weights = self._arrange(tensors)
        return LoadedAdapter(weights, self._arrange_draft and self._arrange_draft(adapter, tensors))

    def _keep(self, digest: str, loaded: LoadedAdapter, seconds: float) -> None:
        if loaded.num_bytes > self.max_bytes:
            error = AdapterError(
                f"it takes {loaded.num_bytes} bytes, lora.host_bytes is {self.max_bytes}; rebuild the engine with more"
            )
            self._fail(digest, _Failure(error, self._clock()))
            return
        victims = self._victims(digest, loaded.num_bytes)
        if victims is None:  # Larger than it looked: it is loaded again once there is room for all of it.
            self._needs[digest] = loaded.num_bytes
            return
        self._let_go(victims)
        self._needs.pop(digest, None)
        self._loaded[digest] = loaded
        self._num_bytes += loaded.num_bytes
        self.num_loads += 1
        self.load_seconds += seconds
        self._durations.append(seconds)

    def _fail(self, digest: str, failure: _Failure) -> None:
        self.num_failures += 1
        self._failures[digest] = failure
        while len(self._failures) > _MAX_FAILURES:
            del self._failures[next(iter(self._failures))]
