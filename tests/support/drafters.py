"""Drafters that can be reasoned about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from trierarch.builder.manifest import DrafterKind
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
        self.is_closed = False

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        """See Drafter.propose."""
        self.asked += asks
        return [self._guess(ask) for ask in asks]

    def seconds(self, asks: Sequence[Ask], num_tokens: int) -> float:
        """See ModelDrafter.seconds."""
        return self._cost * num_tokens

    def forget(self, sequence_ids: Iterable[int]) -> None:
        """See Drafter.forget."""
        self.forgotten += sequence_ids

    def close(self) -> None:
        """See Drafter.close."""
        self.is_closed = True
