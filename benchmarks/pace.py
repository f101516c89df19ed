"""Pace: how far a run is, and how long the rest takes if it goes on as it did."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Counts stages. All are taken for equally long: the estimate is rough, and better the further the run is."""

    def __init__(self, num_stages: int, clock: Callable[[], float] = time.monotonic) -> None:
        """The run starts now; `clock` gives seconds."""
        self._num_stages = num_stages
        self._clock = clock
        self._started = clock()
        self._num_begun = 0

    def begin(self, name: str) -> str:
        """Note that the next stage begins; what to tell of it."""
        num_done, self._num_begun = self._num_begun, self._num_begun + 1
        line = f"[{self._num_begun}/{self._num_stages}] {name}"
        if not num_done:
            return line
        left = (self._clock() - self._started) / num_done * (self._num_stages - num_done)
        return f"{line}; {_duration(left)} left at this pace"


def _duration(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s"
