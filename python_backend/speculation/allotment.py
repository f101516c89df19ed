"""How many tokens of each guess a step verifies: as many as make the most tokens a second, all sequences together."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Final, Protocol

Chances = Rows[float]
"""For one sequence: the probability that the first 1, 2, ... tokens of its guess are all right. Never rises."""

_MOST_TOKENS: Final = 256
"""Drafts weighed for one step; beyond them nothing pays, and weighing takes time."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a policy chose."""

    counts: list[int]
    """Tokens of each guess."""
    rate: float
    """Tokens a second it expects of the step."""


class Allotment(Protocol):
    """A policy. `expected` is what a step yields without the guesses at hand: a token for each sequence that draws."""

    def allot(self, chances: Rows[Chances], seconds: Callable[[int], float], expected: float, pace: float) -> Share:
        """How many tokens of each guess to verify.

        seconds: what the step takes with so many drafts in it; 0 where nobody knows. pace: tokens a second that such
        steps have made lately; 0 where nobody knows.
        """
        ...

    def length(self, chances: Rows[Chances], seconds: Callable[[int], float], expected: float) -> Share:
        """How many tokens a drafter that takes time is to guess, the same number for each sequence that has as many.

        chances: of what it would guess. seconds: of the step and of guessing so many for each; 0 where nobody knows.
        """
        ...


class BestRate:
    """Drafts by falling probability, as long as they bring more tokens than their time is worth.

    The expected yield of a step is one token for each sequence that draws, and for each draft the probability that it
    and all before it are right. Whatever number of drafts a step verifies, the likeliest ones are the best choice, so
    only the number is to be found, and it may be none. What counts is the rate over many steps, good ones and bad: time
    is worth the tokens that it makes elsewhere, so that a step is the better the more it yields beyond what its time is
    worth (Dinkelbach, 1967). It is never worth less than what this step makes of it without a draft.
    """

    def allot(self, chances: Rows[Chances], seconds: Callable[[int], float], expected: float, pace: float) -> Share:
        """See Allotment.allot."""
        counts = [0] * len(chances)
        base = seconds(0)
        if base <= 0.0:  # Nothing was measured yet, and a step without drafts is what everything is compared with.
            return Share(counts, 0.0)
        yields, times, order = [expected], [base], list[int]()
        for chance, row in itertools.islice(_falling(chances), _MOST_TOKENS):
            order.append(row)
            yields.append(yields[-1] + chance)
            times.append(seconds(len(order)))
        rates = [tokens / taken for tokens, taken in zip(yields, times, strict=True)]
        worth = max(pace, rates[0]) if pace > 0.0 else max(rates)
        gains = [tokens - worth * taken for tokens, taken in zip(yields, times, strict=True)]
        best_number = max(range(len(gains)), key=gains.__getitem__)
        for row in order[:best_number]:
            counts[row] += 1
        return Share(counts, rates[best_number])

    def length(self, chances: Rows[Chances], seconds: Callable[[int], float], expected: float) -> Share:
        """See Allotment.length."""
        best_rate, best_length = 0.0, 0
        for length in range(max(map(len, chances), default=0) + 1):
            expected += sum(run[length - 1] for run in chances if 0 < length <= len(run))
            taken = seconds(length)
            if taken <= 0.0:
                break
            if expected / taken > best_rate:
                best_rate, best_length = expected / taken, length
        return Share([min(best_length, len(run)) for run in chances], best_rate)


class FixedLength:
    """Always the same length, whatever it costs: what adapting is measured against."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def allot(self, chances: Rows[Chances], seconds: Callable[[int], float], expected: float, pace: float) -> Share:
        """See Allotment.allot."""
        return Share([min(self._num_tokens, len(run)) for run in chances], expected)

    def length(self, chances: Rows[Chances], seconds: Callable[[int], float], expected: float) -> Share:
        """See Allotment.length."""
        return Share([min(self._num_tokens, len(run)) for run in chances], math.inf)


def _falling(chances: Rows[Chances]) -> Iterator[tuple[float, int]]:
    """(probability, row) of every draft, the likeliest first; a row's own come in their order."""
    heap = [(-run[0], row, 0) for row, run in enumerate(chances) if run]
    heapq.heapify(heap)
    while heap:
        negative, row, place = heap[0]
        yield -negative, row
        run = chances[row]
        if place + 1 < len(run):
            heapq.heapreplace(heap, (-run[place + 1], row, place + 1))
        else:
            heapq.heappop(heap)
