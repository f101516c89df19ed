"""Admission: how many requests may be open, of everybody and of each key; and nobody's while the gateway drains."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from trierarch.orchestrator.gateway.capacity import Capacity
from trierarch.orchestrator.gateway.errors import ApiError


class Admission:
    """Counts requests that generate, whichever engine they are for. For one event loop."""

    def __init__(self, max_open: int, max_open_per_key: int | None, capacities: Sequence[Capacity]) -> None:
        """`max_open` of them wait or run at once, and no more than the engines together have room for."""
        self._max_open, self._max_open_per_key = max_open, max_open_per_key
        self._capacities = tuple(capacities)
        self._per_key: Counter[int] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self.num_open = 0
        self.is_draining = False

    @contextmanager
    def admit(self, key: int = 0) -> Iterator[None]:
        """Hold a place for one request; at once, or not at all.

        Raises:
            ApiError: there is none, or the gateway drains.
        """
        if self.is_draining:
            raise ApiError(503, "the server is stopping", code="draining", retry_after=self.retry_after())
        if self.num_open >= self._most():
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

    def retry_after(self) -> float:
        """Seconds until the first of the engines has a place free."""
        return min(capacity.retry_after() for capacity in self._capacities)

    def drain(self) -> None:
        """Admit nobody any more."""
        self.is_draining = True

    async def wait_idle(self) -> None:
        """Until no request is open."""
        await self._idle.wait()

    def _most(self) -> int:
        room = 0
        for capacity in self._capacities:
            if capacity.most is None:
                return self._max_open
            room += capacity.most
        return min(self._max_open, room)
