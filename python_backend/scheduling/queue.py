"""WaitingQueue: sequences that have yet to start, or to start again, the most urgent first."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from trierarch.python_backend.sequence import Sequence, SequenceStatus

MAX_PRIORITY = 100
"""Priorities lie in [-MAX_PRIORITY, MAX_PRIORITY]; the bound is what keeps ageing from taking for ever."""

Standing = tuple[float, bool, int]
"""(seconds, new, sequence_id); smaller is more urgent, and no two sequences have the same."""


def standing(sequence: Sequence, ageing_seconds: float) -> Standing:
    """Where a sequence stands among all others.

    Each step of priority counts as `ageing_seconds` of earlier arrival. Both sides age alike, so the order of two
    sequences never changes while they wait, and everything that arrives more than 2 * MAX_PRIORITY * ageing_seconds
    after a sequence stands behind it: nobody starves. At equal standing a preempted sequence comes first.
    """
    request = sequence.request
    is_new = sequence.status is not SequenceStatus.PREEMPTED
    return request.arrival_time - request.priority * ageing_seconds, is_new, sequence.sequence_id


def _standing(entry: tuple[Standing, Sequence]) -> Standing:
    return entry[0]


class WaitingQueue:
    """A list kept in order: short enough that moving its tail costs less than a cleverer structure."""

    def __init__(self, ageing_seconds: float) -> None:
        """An empty queue."""
        self._ageing_seconds = ageing_seconds
        self._entries: list[tuple[Standing, Sequence]] = []
        self.num_changes = 0
        """Sequences that came or went, since the start."""
        self.num_adapted = 0
        """Sequences with an adapter."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for _, sequence in self._entries)

    def in_turn(self) -> Iterator[Sequence]:
        """The most urgent first, each found when it is asked for: whoever was told may leave and come back meanwhile."""
        index = 0
        while index < len(self._entries):
            told, sequence = self._entries[index]
            yield sequence
            index = bisect_right(self._entries, told, key=_standing)

    @property
    def num_paused_requests(self) -> int:
        """Requests with a preempted sequence."""
        return len({s.request.request_id for s in self if s.status is SequenceStatus.PREEMPTED})

    def push(self, sequence: Sequence) -> None:
        """Add a waiting or preempted sequence; its status must not change while it is here."""
        insort(self._entries, (standing(sequence, self._ageing_seconds), sequence))
        self.num_changes += 1
        self.num_adapted += sequence.request.adapter is not None

    def discard(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands; nothing happens if it is not here."""
        index = bisect_left(self._entries, standing(sequence, self._ageing_seconds), key=_standing)
        if index < len(self._entries) and self._entries[index][1] is sequence:
            del self._entries[index]
            self.num_changes += 1
            self.num_adapted -= sequence.request.adapter is not None
