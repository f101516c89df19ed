"""ArenaPool: arenas that nobody needs any more, or not yet, for the next ones of their size."""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final

from trierarch.builder.errors import ResourceError
from trierarch.python_backend.executors.cpu.arena import Arena

logger = logging.getLogger(__name__)

_MAX_LEFT: Final = 2
"""One adapter goes, one comes: more would only hold memory."""


class ArenaPool:
    """Any thread may call it. To get fresh pages takes longer than to fill them, so that one arena waits with its pages
    got, of the size that was asked for last. Not by whoever takes one, who is waited for.
    """

    def __init__(self, preparing: Executor | None = None) -> None:
        """Empty. preparing: who makes arenas ready; None is a thread that ends with the pool."""
        # Operations of deques are atomic.
        self._left: deque[Arena] = deque(maxlen=_MAX_LEFT)
        self._ready: deque[Arena] = deque(maxlen=1)
        self._preparing = preparing or ThreadPoolExecutor(1, "trierarch-arenas")

    def take(self, num_bytes: int) -> Arena:
        """One of as many bytes, which may hold anything.

        Raises:
            ResourceError: there is no room.
        """
        arena = _take(self._left, num_bytes) or _take(self._ready, num_bytes)
        if arena is None:
            arena = _fresh(num_bytes)
        self._preparing.submit(self._prepare, num_bytes)
        return arena

    def give_back(self, arena: Arena) -> None:
        """Nobody reads or writes it any more."""
        self._left.append(arena)

    def _prepare(self, num_bytes: int) -> None:
        if any(arena.num_bytes == num_bytes for arena in (*self._left, *self._ready)):
            return
        try:
            arena = _fresh(num_bytes)
        except ResourceError as error:  # The next load takes longer, and that is all.
            logger.info("no arena is made ready for the next adapter: %s", error)
            return
        arena.populate()
        self._ready.append(arena)


def _take(arenas: deque[Arena], num_bytes: int) -> Arena | None:
    """The first of that size; the others change their order."""
    for _ in range(_MAX_LEFT):
        try:
            arena = arenas.popleft()
        except IndexError:
            break
        if arena.num_bytes == num_bytes:
            return arena
        arenas.append(arena)
    return None


def _fresh(num_bytes: int) -> Arena:
    return Arena(num_bytes, on_huge_pages=False)  # adapters are loaded while others stream
