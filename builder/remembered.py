"""Remembered: facts that were once found out, the most recently used ones."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Fact = TypeVar("Fact", bound=Hashable)


class Remembered(Generic[Fact]):
    """A bounded set. Any thread may call it."""

    def __init__(self, max_facts: int) -> None:
        """Empty."""
        self._max_facts = max_facts
        self._facts: OrderedDict[Fact, None] = OrderedDict()  # the longest unused first
        self._lock = threading.Lock()

    def __contains__(self, fact: Fact) -> bool:
        """Whether it is remembered; it is used by that."""
        with self._lock:
            if fact in self._facts:
                self._facts.move_to_end(fact)
                return True
            return False

    def add(self, fact: Fact) -> None:
        """Remember it, and forget the longest unused one if there are too many."""
        with self._lock:
            self._facts[fact] = None
            self._facts.move_to_end(fact)
            if len(self._facts) > self._max_facts:
                self._facts.popitem(last=False)
