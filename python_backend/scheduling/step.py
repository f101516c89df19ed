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

    def give(self, sequence: Sequence, num_tokens: int) -> None:
        """Compute the next `num_tokens` known tokens of `sequence`, and draw if these are all."""
        start = sequence.num_computed_tokens
        samples = start + num_tokens == len(sequence.token_ids)
        self._items[sequence.sequence_id] = ScheduledSequence(sequence, start, num_tokens, (), samples)
        self.num_tokens_left -= num_tokens

    def take_back(self, sequence: Sequence) -> None:
        """Undo `give`, if it was given anything."""
        item = self._items.pop(sequence.sequence_id, None)
        if item is not None:
            self.num_tokens_left += item.num_tokens

    def scheduled(self) -> tuple[ScheduledSequence, ...]:
        """All shares, in the order they were given."""
        return tuple(self._items.values())
