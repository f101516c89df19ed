"""Sequences to draft for, and what a drafter's look-ups come to when done the slow, obvious way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from itertools import takewhile
from typing import Any

from support.scheduling import make_request
from trierarch.python_backend.request import FinishReason
from trierarch.python_backend.sequence import Sequence, SequenceStatus
from trierarch.python_backend.speculation.drafter import Ask, Draft, Drafter


def make_sequence(sequence_id: int, prompt: Rows[int], output: Rows[int] = (), **fields: Any) -> Sequence:
    """A running sequence; `fields` are the request's."""
    request = make_request(str(sequence_id), tuple(prompt), **{"max_tokens": 100, **fields})
    return Sequence(sequence_id, request, 0, [*prompt, *output], status=SequenceStatus.RUNNING)


def draft(drafter: Drafter, sequence: Sequence, max_tokens: int = 8) -> Draft:
    """The draft for one sequence."""
    (drafted,) = drafter.propose([Ask(sequence, max_tokens)])
    return drafted


def finish(drafter: Drafter, sequence: Sequence, reason: FinishReason = FinishReason.STOP) -> None:
    """End the sequence and let the drafter forget it."""
    sequence.status, sequence.finish_reason = SequenceStatus.FINISHED, reason
    drafter.forget([sequence.sequence_id])


def longest_matches(tail: Rows[int], texts: Rows[Rows[int]], shortest: int) -> tuple[int, list[tuple[int, int]]]:
    """Length of the longest suffix of `tail` within one of `texts`, and (text, index of its last token) of each."""
    lengths = {
        (which, end): _num_equal(reversed(text[: end + 1]), reversed(tail))
        for which, text in enumerate(texts)
        for end in range(len(text))
    }
    longest = max(lengths.values(), default=0)
    if longest < shortest:
        return 0, []
    return longest, [place for place, length in lengths.items() if length == longest]


def _num_equal(ours: Iterable[int], theirs: Iterable[int]) -> int:
    """Tokens that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))


def most_frequent(continuations: Rows[Rows[int]], limit: int, least: float) -> list[int]:
    """The most frequent way on, of equals the one that comes first; ends where its probability falls below `least`."""
    guess: list[int] = []
    probability = 1.0
    while len(guess) < limit:
        known = [each for each in continuations if len(each) > len(guess) and list(each[: len(guess)]) == guess]
        if not known:
            break
        counts = Counter(each[len(guess)] for each in known)
        token, count = counts.most_common(1)[0]
        probability *= count / len(known)
        if probability < least:
            break
        guess.append(token)
    return guess
