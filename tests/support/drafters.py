"""Drafters that can be reasoned about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows

from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.sequence import Sequence
from trierarch.python_backend.speculation.drafter import Ask, Draft


class ScriptedDrafter:
    """Guesses what a function says; remembers what it was asked and told to forget."""

    def __init__(
        self, guess: Callable[[Ask], Draft], kind: DrafterKind = DrafterKind.SUFFIX, cost: float = 0.0
    ) -> None:
        """cost: seconds that a token of a guess takes, where it is asked as a model."""
        self._guess = guess
        self._cost = cost
        self.kind = kind
        self.asked: list[Ask] = []
        self.forgotten: list[int] = []
        self.unknown: set[int] = set()
        """Sequences that it cannot guess for, where it is asked as a model"""
        self.is_closed = False

    def propose(self, asks: Rows[Ask]) -> list[Draft]:
        """See Drafter.propose."""
        self.asked += asks
        return [self._guess(ask) for ask in asks]

    def can_guess(self, sequence: Sequence) -> bool:
        """See ModelDrafter.can_guess."""
        return sequence.sequence_id not in self.unknown

    def seconds(self, asks: Rows[Ask], num_tokens: int) -> float:
        """See ModelDrafter.seconds."""
        return self._cost * num_tokens

    def forget(self, sequence_ids: Iterable[int]) -> None:
        """See Drafter.forget."""
        self.forgotten += sequence_ids

    def close(self) -> None:
        """See Drafter.close."""
        self.is_closed = True
