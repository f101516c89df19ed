"""Probing: when to try again what did not pay."""

from __future__ import annotations

from typing import Final

_SOONEST: Final = 16
_LATEST: Final = 512
_PATIENCE: Final = 16
"""Tries without a result that count for one."""


class Probing:
    """Counts the steps in which something was not done, and says when to do it once to see what it is worth now.

    After each try the wait doubles, so that tries in vain cost next to nothing; when the load falls, what was too dear
    may pay, and the next try comes soon.
    """

    def __init__(self) -> None:
        self._wait = _SOONEST
        self._left = 1  # The first try comes at once: nothing is known yet.
        self._load = 0
        self._num_without = 0

    def is_due(self, load: int) -> bool:
        """Whether to try now, at a load of so many sequences. Called once for each step in which it seems not to pay."""
        if load < self._load:
            self._wait = self._left = _SOONEST
        self._load = load
        self._left -= 1
        if self._left > 0:
            return False
        self._wait = min(2 * self._wait, _LATEST)
        self._left = self._wait
        return True

    def tried(self, has_result: bool) -> None:
        """What a try came to. Without a result, as where a model has yet to know a long text, the next step goes on with it."""
        if has_result or self._num_without == _PATIENCE:
            self._num_without = 0
            return
        self._num_without += 1
        self._wait = max(_SOONEST, self._wait // 2)
        self._left = 1

    def paid(self) -> None:
        """It pays at the moment: should it stop to, the next try comes soon."""
        self._wait = self._left = _SOONEST
