"""ArenaPool: arenas that nobody needs any more, for the next ones of their size."""

from __future__ import annotations

from collections import deque
from typing import Final

from trierarch.python_backend.executors.cpu.arena import Arena

_MAX_FREE: Final = 2
"""One adapter goes, one comes: more would only hold memory."""


class ArenaPool:
    """Any thread may call it. To get a fresh page takes longer than to fill it."""

    def __init__(self) -> None:
        """Empty."""
        self._free: deque[Arena] = deque(maxlen=_MAX_FREE)  # its own operations are atomic

    def take(self, num_bytes: int) -> Arena:
        """One of as many bytes, which may hold anything.

        Raises:
            ResourceError: there is no room.
        """
        for _ in range(_MAX_FREE):
            try:
                arena = self._free.popleft()
            except IndexError:
                break
            if arena.num_bytes == num_bytes:
                return arena
            self._free.append(arena)
        return Arena(num_bytes, on_huge_pages=False)  # adapters are loaded while others stream

    def give_back(self, arena: Arena) -> None:
        """Nobody reads or writes it any more."""
        self._free.append(arena)
