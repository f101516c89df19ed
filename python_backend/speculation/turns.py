"""Turns: for whom a step guesses from text, where guessing for everybody would take a part of the step that shows."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from typing import Final

from trierarch.python_backend.speculation.drafter import Ask

_SHARE: Final = 0.01
"""Of a step's time, for guesses on those of whom nothing is expected."""
_PATIENCE: Final = 8
"""Steps that a sequence is asked about in a row after a draft of it was right: where a copy is broken off it often goes on."""
_WEIGHT: Final = 0.1
"""Of the newest measurement in an average."""


class Turns:
    """Who is worth asking about, and whose turn it is of the others.

    A guess takes tens of microseconds and a sequence's share of a step may be no more than hundreds. Whoever is new is asked
    about, for an answer that was given before is known by its first tokens; and those whose drafts were right a moment ago,
    in every step. Of all others as many as a hundredth of the step allows, one at least, the longest not asked first: what
    they say is learnt as ever, so that whoever begins to repeat is found.
    """

    def __init__(self) -> None:
        """Nobody was asked about, and what that takes is not known."""
        self._num_steps = 0
        self._asked: dict[int, int] = {}  # sequence_id -> the step of its last guess
        self._right: dict[int, int] = {}  # sequence_id -> the step of its last draft that was right
        self._seconds = 0.0  # of one guess

    def choose(self, asks: Rows[Ask], step_seconds: float) -> Rows[Ask]:
        """Those of `asks` to guess for in this step, which is expected to take so long; 0 where nobody knows."""
        self._num_steps += 1
        num_free = len(asks)
        if self._seconds > 0.0 and step_seconds > 0.0:
            num_free = max(1, int(_SHARE * step_seconds / self._seconds))
        if len(asks) > num_free:
            promising, others = list[Ask](), list[Ask]()
            for ask in asks:
                (promising if self._is_promising(ask.sequence.sequence_id) else others).append(ask)
            others.sort(key=lambda ask: self._asked[ask.sequence.sequence_id])
            asks = promising + others[:num_free]
        for ask in asks:
            self._asked[ask.sequence.sequence_id] = self._num_steps
        return asks

    def took(self, num_guesses: int, seconds: float) -> None:
        """So many guesses took so long."""
        if num_guesses:
            each = seconds / num_guesses
            self._seconds += (_WEIGHT if self._seconds else 1.0) * (each - self._seconds)

    def was_right(self, sequence_id: int) -> None:
        """A draft of it that was followed was right at least in its first token."""
        self._right[sequence_id] = self._num_steps

    def forget(self, sequence_ids: Iterable[int]) -> None:
        """These ended or were preempted."""
        for sequence_id in sequence_ids:
            self._asked.pop(sequence_id, None)
            self._right.pop(sequence_id, None)

    def _is_promising(self, sequence_id: int) -> bool:
        if sequence_id not in self._asked:
            return True
        right = self._right.get(sequence_id)
        return right is not None and self._num_steps - right < _PATIENCE
