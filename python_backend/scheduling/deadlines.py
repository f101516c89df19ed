"""Deadlines: which requests are overdue, at the cost of one comparison while none is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from trierarch.python_backend.request import Request


class Deadlines:
    """Knows a time before which no live request is overdue. Times of a clock are nanoseconds."""

    def __init__(self) -> None:
        """No deadline."""
        self._next_ns = math.inf

    def add(self, request: Request) -> None:
        """A request came."""
        if request.deadline is not None:
            self._next_ns = min(self._next_ns, request.deadline * 1e9)

    def overdue(self, live: Callable[[], Iterable[Request]], now: int) -> list[Request]:
        """Those of all that `live` tells whose deadline has come."""
        if now < self._next_ns:
            return []
        timed = [(request.deadline * 1e9, request) for request in live() if request.deadline is not None]
        self._next_ns = min((deadline for deadline, _ in timed if deadline > now), default=math.inf)
        return [request for deadline, request in timed if deadline <= now]

    def seconds_left(self, now: int) -> float | None:
        """After which `overdue` may find one; None is never."""
        return None if self._next_ns == math.inf else max(0.0, self._next_ns - now) / 1e9
