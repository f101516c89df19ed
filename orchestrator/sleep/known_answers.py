"""KnownAnswers: what a server once said of itself and says again after every wake, so that asking for it wakes nobody."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

A = TypeVar("A")

MAX_ANSWERS: Final = 256
MAX_ANSWER_BYTES: Final = 1 << 18


class KnownAnswers(Generic[A]):
    """Call → answer, the least recently asked for forgotten first. Only of calls whose answers never change."""

    def __init__(self) -> None:
        """Knows nothing."""
        self._answers: OrderedDict[Hashable, A] = OrderedDict()

    def get(self, call: Hashable) -> A | None:
        """What was answered to `call`, if that is known."""
        answer = self._answers.get(call)
        if answer is not None:
            self._answers.move_to_end(call)
        return answer

    def put(self, call: Hashable, answer: A, num_bytes: int) -> None:
        """Remember an answer of `num_bytes`, unless it is large."""
        if num_bytes <= MAX_ANSWER_BYTES:
            self._answers[call] = answer
            self._answers.move_to_end(call)
            if len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
