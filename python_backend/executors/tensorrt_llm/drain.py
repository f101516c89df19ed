"""Drain: one of the library's queues, read to the end again and again.

Such a queue gives each record to one reader and ends a reading after a quiet while; some releases start no other before the
next request. So one task reads it all, and what comes is kept by whoever takes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

logger = logging.getLogger(__name__)

QUIET_SECONDS: Final = 2.0
"""Without a record, after which the library ends a reading."""
_PAUSE_SECONDS: Final = 0.2
"""Between two readings while requests run."""


class Drain:
    """Of one queue; the executor's thread alone calls it."""

    def __init__(self, name: str, read: Callable[[float], AsyncIterator[Any]], take: Callable[[Any], None]) -> None:
        """`name` is for the log. `read` starts a reading that ends after so many quiet seconds; `take` gets each record."""
        self._name = name
        self._read = read
        self._take = take
        self._has_begun = asyncio.Event()

    def wake(self) -> None:
        """A request has begun."""
        self._has_begun.set()

    async def run(self, is_busy: Callable[[], bool]) -> None:
        """Take every record, for ever."""
        while True:
            await self._has_begun.wait()
            self._has_begun.clear()
            try:
                async for record in self._read(QUIET_SECONDS):
                    self._take(record)
            except Exception:  # What is told beside the answers is worth no request.
                logger.exception("%s of TensorRT-LLM could not be read", self._name)
            was_busy = is_busy()  # what ends in the pause is told of too
            await asyncio.sleep(_PAUSE_SECONDS)
            if was_busy or is_busy():
                self._has_begun.set()
