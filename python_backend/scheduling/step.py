"""Step: a plan in the making, and what is left of its budget."""

from __future__ import annotations

from trierarch.python_backend.scheduling.plan import ScheduledSequence
from trierarch.python_backend.sequence import Sequence


class Step:
    """Hands out a budget of tokens, to each sequence at most once."""

    def __init__(self, token_budget: int) -> None:
        """Nothing is given out yet."""
        self.num_tokens_left = token_budget
        self._items: dict[int, ScheduledSequence] = {}  # sequence_id -> its share

    def give(self, share: ScheduledSequence) -> None:
        """Compute that; its sequence has no share yet."""
        self._items[share.sequence.sequence_id] = share
        self.num_tokens_left -= share.num_tokens

    def take_back(self, sequence: Sequence) -> None:
        """Undo `give`, if it was given anything."""
        item = self._items.pop(sequence.sequence_id, None)
        if item is not None:
            self.num_tokens_left += item.num_tokens

    def scheduled(self) -> tuple[ScheduledSequence, ...]:
        """All shares, in the order they were given."""
        return tuple(self._items.values())
