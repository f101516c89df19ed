"""DeadEngine: ends a process whose engine is dead, so that another can take its place.

A GPU that failed stays so for the process that used it. `is_ready` tells that to a Triton that asks (26.03 and later);
older ones call the model ready whatever it does, and only the end of its process is seen, by whoever watches that.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Final

import psutil

logger = logging.getLogger(__name__)

WATCH_SECONDS: Final = 0.5
GRACE_SECONDS: Final = 10.0
"""That answers get to leave, beyond the error that each of them ends with at once."""


class DeadEngine:
    """Looks after one engine; `look` is called every WATCH_SECONDS."""

    def __init__(
        self,
        is_healthy: Callable[[], bool],
        num_open: Callable[[], int],
        leave: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`num_open`: requests being answered. `leave` None ends this process and those below it."""
        self._is_healthy = is_healthy
        self._num_open = num_open
        self._leave = leave or _end_process
        self._clock = clock
        self._found_at: float | None = None

    def look(self) -> None:
        """Leave, if the engine was dead the last time too, once every answer is out or has had its time."""
        if self._is_healthy():
            return
        if self._found_at is None:
            self._found_at = self._clock()
            logger.critical("the engine is dead: this process ends, and the model has to be loaded anew")
        elif self._num_open() == 0 or self._clock() - self._found_at > GRACE_SECONDS:
            self._leave()


def _end_process() -> None:
    """At once: what would be given back in order hangs on an engine that is dead. Its own processes hold GPUs."""
    for child in psutil.Process().children(recursive=True):
        child.kill()
    logging.shutdown()
    os._exit(1)
