"""Acceptance: how likely a guess is right, learnt from every guess whose outcome became known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from trierarch.builder.manifest import DrafterKind

_FORGET: Final = 0.98
"""What an old outcome counts for, one outcome later, in what all sequences share."""
_FORGET_OWN: Final = 0.9
"""The same in what one sequence has of its own: it changes its subject faster than the mix of requests does."""
_TRUST: Final = 4.0
"""Outcomes that the common rate counts for beside a sequence's own."""
_FIRST_RATE: Final = 0.5
"""Of a ground that nobody has stood on."""


class Acceptance:
    """Rates of acceptance, exponentially weighted, by drafter, evidence and sequence.

    A token counts only where all before it were accepted, so a rate is conditional, and a run of k tokens is accepted
    with the product of k rates. The first token of a draft has a rate apart from the later ones: once a copy has begun
    it goes on.
    """

    def __init__(self) -> None:
        self._common: defaultdict[tuple[DrafterKind | None, int, bool], _Rate] = defaultdict(_Rate)
        self._own: dict[int, dict[tuple[DrafterKind | None, bool], _Rate]] = {}

    def run(self, sequence_id: int, drafter: DrafterKind | None, evidence: int, num_tokens: int) -> list[float]:
        """Probability that the first 1, 2, ... `num_tokens` tokens of a draft are all accepted.

        `drafter` None is the caller of the request.
        """
        if num_tokens == 0:
            return []
        reached = self._rate(sequence_id, drafter, evidence, False)
        later = self._rate(sequence_id, drafter, evidence, True) if num_tokens > 1 else 0.0
        chances = [reached]
        for _ in range(num_tokens - 1):
            reached *= later
            chances.append(reached)
        return chances

    def observe(
        self, sequence_id: int, drafter: DrafterKind | None, evidence: int, num_known: int, num_right: int
    ) -> None:
        """Of a draft, the first `num_known` tokens were put to the test and the first `num_right` were right."""
        own = self._own.setdefault(sequence_id, {})
        for position in range(min(num_known, num_right + 1)):
            is_later, is_right = position > 0, position < num_right
            self._common[drafter, evidence, is_later].add(is_right, _FORGET)
            own.setdefault((drafter, is_later), _Rate()).add(is_right, _FORGET_OWN)

    def forget(self, sequence_ids: Iterable[int]) -> None:
        """Drop what these sequences have of their own."""
        for sequence_id in sequence_ids:
            self._own.pop(sequence_id, None)

    def _rate(self, sequence_id: int, drafter: DrafterKind | None, evidence: int, is_later: bool) -> float:
        common = self._common.get((drafter, evidence, is_later), _NOTHING)
        rate = (common.num_right + _FIRST_RATE) / (common.num_known + 1.0)
        own = self._own.get(sequence_id, {}).get((drafter, is_later), _NOTHING)
        return (own.num_right + _TRUST * rate) / (own.num_known + _TRUST)


class _Rate:
    """Outcomes, the older the less they count."""

    __slots__ = ("num_known", "num_right")

    def __init__(self) -> None:
        self.num_known = 0.0
        self.num_right = 0.0

    def add(self, is_right: bool, forget: float) -> None:
        self.num_known = self.num_known * forget + 1.0
        self.num_right = self.num_right * forget + is_right


_NOTHING: Final = _Rate()
