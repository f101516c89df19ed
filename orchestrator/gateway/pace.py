"""Pace: how fast answers were finished lately, and so when asking again is worth it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

WINDOW_SECONDS: Final = 60.0
MAX_FINISHED: Final = 512
"""Latest answers that are looked at."""
LEAST_SECONDS: Final = 1.0
MOST_SECONDS: Final = 60.0


class Pace:
    """Measured from the requests that were answered to their end within the last minute."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._finished: deque[float] = deque(maxlen=MAX_FINISHED)

    def finish(self) -> None:
        """A request was answered to its end."""
        self._finished.append(self._now())

    def per_second(self) -> float | None:
        """Requests finished a second; None where none was of late."""
        now = self._now()
        while self._finished and now - self._finished[0] > WINDOW_SECONDS:
            self._finished.popleft()
        if not self._finished:
            return None
        return len(self._finished) / max(now - self._finished[0], LEAST_SECONDS)

    def seconds_until(self, num_ahead: int) -> float:
        """How long until so many requests are finished, within bounds."""
        rate = self.per_second()
        # With nothing to go by, the longest answers there are may be what everybody waits for.
        seconds = MOST_SECONDS / 10 if rate is None else num_ahead / rate
        return min(max(seconds, LEAST_SECONDS), MOST_SECONDS)
