from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trierarch.python_backend.speculation.allotment import BestRate, FixedLength
from trierarch.python_backend.speculation.pace import Pace

# Probabilities of runs: products of conditional rates, so they never rise.
RUNS = st.lists(
    st.lists(st.floats(0.0, 1.0), max_size=4).map(lambda rates: list(itertools.accumulate(rates, lambda a, b: a * b))),
    max_size=4,
)


def line(base: float, slope: float) -> Callable[[int], float]:
    return lambda num_drafts: base + slope * num_drafts


@given(chances=RUNS, slope=st.floats(0.0, 2.0), knee=st.integers(0, 8))
def test_no_other_choice_has_a_better_rate(chances: list[list[float]], slope: float, knee: int) -> None:
    def seconds(num_drafts: int) -> float:
        return 1.0 + slope * max(0, num_drafts - knee)

    share = BestRate().allot(chances, seconds, len(chances), 0.0)
    every = itertools.product(*(range(len(run) + 1) for run in chances))
    best = max(
        (len(chances) + sum(sum(run[:count]) for run, count in zip(chances, counts, strict=True)))
        / seconds(sum(counts))
        for counts in every
    )
    assert share.rate == pytest.approx(best)
    yielded = len(chances) + sum(sum(run[:count]) for run, count in zip(chances, share.counts, strict=True))
    assert yielded / seconds(sum(share.counts)) == pytest.approx(best)


@given(
    steps=st.lists(RUNS.filter(any), min_size=1, max_size=3),
    base=st.floats(0.5, 2.0),
    slope=st.floats(0.0, 1.0),
)
def test_no_other_choice_for_each_kind_of_step_makes_more_over_all(
    steps: list[list[list[float]]], base: float, slope: float
) -> None:
    """Steps of several kinds, one after the other, until the pace stands still."""
    seconds, pace = line(base, slope), Pace()
    for _ in range(300):
        for chances in steps:
            num_drafts = sum(BestRate().allot(chances, seconds, 1, pace.rate(1)).counts)
            pace.observe(1, yielded(chances, num_drafts), seconds(num_drafts))
    every = itertools.product(*(range(sum(map(len, chances)) + 1) for chances in steps))
    best = max(
        sum(yielded(chances, n) for chances, n in zip(steps, numbers, strict=True)) / sum(map(seconds, numbers))
        for numbers in every
    )
    assert pace.rate(1) == pytest.approx(best, rel=0.02)


def yielded(chances: list[list[float]], num_drafts: int) -> float:
    """Tokens expected of a step with so many of the likeliest drafts."""
    return 1 + sum(sorted(itertools.chain(*chances), reverse=True)[:num_drafts])


def test_free_drafts_are_all_taken_and_dear_ones_none() -> None:
    chances = [[0.9, 0.8], [0.1]]
    assert BestRate().allot(chances, line(1.0, 0.0), 2, 0.0).counts == [2, 1]
    assert BestRate().allot(chances, line(1.0, 5.0), 2, 0.0).counts == [0, 0]
    assert BestRate().allot(chances, line(1.0, 0.3), 2, 0.0).counts == [2, 0]


def test_nothing_is_drafted_before_a_step_was_measured() -> None:
    assert BestRate().allot([[0.9]], lambda num_drafts: 0.0, 1, 0.0).counts == [0]
    assert BestRate().length([[0.9]], lambda length: 0.0, 1).counts == [0]


@given(chances=RUNS.filter(any), step=st.floats(0.01, 2.0), each=st.floats(0.0, 1.0))
def test_the_best_length_is_found(chances: list[list[float]], step: float, each: float) -> None:
    share = BestRate().length(chances, line(step, each), len(chances))
    longest = max(map(len, chances))
    rates = [
        (len(chances) + sum(sum(run[:length]) for run in chances)) / (step + each * length)
        for length in range(longest + 1)
    ]
    assert share.rate == pytest.approx(max(rates))
    assert rates[max(share.counts)] == pytest.approx(max(rates))


@pytest.mark.parametrize("num_tokens", [0, 1, 3])
def test_a_fixed_length_heeds_nothing(num_tokens: int) -> None:
    chances = [[0.0] * 2, [0.0] * 5]
    expected = [min(num_tokens, 2), num_tokens]
    assert FixedLength(num_tokens).allot(chances, line(1.0, 100.0), 2, 0.0).counts == expected
    assert FixedLength(num_tokens).length(chances, line(0.0, 0.0), 2).counts == expected
