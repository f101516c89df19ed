"""Capacity: how many requests one engine runs and queues, how many it has from here, and when another is worth sending."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trierarch.orchestrator.gateway.errors import ApiError
from trierarch.orchestrator.gateway.pace import Pace


class Capacity:
    """Of one engine. For one event loop."""

    def __init__(self, pace: Pace | None = None) -> None:
        """Without a bound until `fit` says one."""
        self.num_open = 0
        self.most: int | None = None
        """Requests that the engine runs and queues; None is not known yet."""
        self._num_running_at_most = 0  # those beyond them wait
        self._pace = pace or Pace()

    def fit(self, max_running: int, max_waiting: int) -> None:
        """The engine runs and queues so many: what it would refuse need not be brought to it."""
        self._num_running_at_most = max_running
        self.most = max_running + max_waiting

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for one request; at once, or not at all.

        Raises:
            ApiError: there is none.
        """
        if self.most is not None and self.num_open >= self.most:
            raise ApiError(
                503, f"{self.num_open} requests are open: at most", code="overloaded", retry_after=self.retry_after()
            )
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1

    def finish(self) -> None:
        """A request was answered to its end."""
        self._pace.finish()

    def retry_after(self) -> float:
        """Seconds until a place is free, at the measured pace: so long do those take that wait, and one more."""
        num_waiting = max(0, self.num_open - self._num_running_at_most)
        return self._pace.seconds_until(num_waiting + 1)
