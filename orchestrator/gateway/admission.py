"""Admission: how many requests may be open, of everybody and of each key; and nobody's while the gateway drains."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from trierarch.orchestrator.gateway.errors import ApiError
from trierarch.orchestrator.gateway.pace import Pace


class Admission:
    """Counts requests that generate. For one event loop."""

    def __init__(self, max_open: int, max_open_per_key: int | None = None, pace: Pace | None = None) -> None:
        """`max_open` of them wait or run at once."""
        self._max_open, self._max_open_per_key = max_open, max_open_per_key
        self._max_useful = max_open
        self._pace = pace or Pace()
        self._per_key: Counter[int] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self.num_open = 0
        self.is_draining = False
        self._num_running_at_most = 0  # requests; those beyond them wait

    @contextmanager
    def admit(self, key: int = 0) -> Iterator[None]:
        """Hold a place for one request; at once, or not at all.

        Raises:
            ApiError: there is none, or the gateway drains.
        """
        if self.is_draining:
            raise ApiError(503, "the server is stopping", code="draining", retry_after=self.retry_after())
        if self.num_open >= min(self._max_open, self._max_useful):
            raise ApiError(
                503, f"{self.num_open} requests are open: at most", code="overloaded", retry_after=self.retry_after()
            )
        if self._max_open_per_key is not None and self._per_key[key] >= self._max_open_per_key:
            raise ApiError(
                429,
                f"{self._per_key[key]} requests with this key are open, which is all that it may have",
                code="too_many_requests",
                retry_after=self.retry_after(),
            )
        self.num_open += 1
        self._per_key[key] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_open -= 1
            self._per_key[key] -= 1
            if not self._per_key[key]:
                del self._per_key[key]
            if not self.num_open:
                self._idle.set()

    def fit(self, max_running: int, max_waiting: int) -> None:
        """The model runs and queues so many: what it would refuse need not be brought to it."""
        self._num_running_at_most = max_running
        self._max_useful = max_running + max_waiting

    def finish(self) -> None:
        """A request was answered to its end."""
        self._pace.finish()

    def retry_after(self) -> float:
        """Seconds until a place is free, at the measured pace: so long do those take that wait, and one more."""
        num_waiting = max(0, self.num_open - self._num_running_at_most)
        return self._pace.seconds_until(num_waiting + 1)

    def drain(self) -> None:
        """Admit nobody any more."""
        self.is_draining = True

    async def wait_idle(self) -> None:
        """Until no request is open."""
        await self._idle.wait()
