"""Vigil: hears at once when one of a server's processes ends."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Iterable


class Vigil:
    """Watches processes until the first of them ends, whoever's children they are."""

    def __init__(self, pids: Iterable[int], on_death: Callable[[int], None]) -> None:
        """Call `on_death` in the running loop, once, with the id of a process that has ended.

        Raises:
            ProcessLookupError: one is gone already.
        """
        self._loop = asyncio.get_running_loop()
        self._on_death = on_death
        self._poll = select.poll()
        self._pids: dict[int, int] = {}
        try:
            for pid in pids:
                descriptor = os.pidfd_open(pid)  # readable when it has ended, before its parent has taken note
                self._pids[descriptor] = pid
                self._poll.register(descriptor, select.POLLIN)
        except ProcessLookupError:
            self.close()
            raise
        for descriptor, pid in self._pids.items():
            self._loop.add_reader(descriptor, self._die, pid)

    @property
    def is_over(self) -> bool:
        """Whether one has ended, be it that the loop has not heard of it yet."""
        return not self._pids or bool(self._poll.poll(0))

    def heed(self) -> None:
        """Tell now of one that has ended, where the loop would tell of it in its next round only."""
        for descriptor, _ in self._poll.poll(0) if self._pids else ():
            self._die(self._pids[descriptor])
            return

    def close(self) -> None:
        """Watch no longer. Idempotent."""
        for descriptor in self._pids:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self._pids.clear()

    def _die(self, pid: int) -> None:
        self.close()
        self._on_death(pid)
