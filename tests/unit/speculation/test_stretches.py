"""Guessing or launching: the one that makes more tokens a second is what most steps do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trierarch.python_backend.speculation.stretches import LONGEST, SHORTEST, TRIAL, Stretches

SECONDS = 0.01
Tokens = Callable[[bool], float]
"""What a step draws for each sequence, where it is launched and where it is guessed for."""


def run(stretches: Stretches, num_steps: int, tokens: Tokens, num_sequences: int = 64) -> int:
    """How many of so many steps of equal length are launched."""
    num_launched = 0
    for _ in range(num_steps):
        is_launched = stretches.is_launching
        num_launched += is_launched
        stretches.observe(is_launched, num_sequences, round(100 * num_sequences * tokens(is_launched)), 100 * SECONDS)
    return num_launched


def launching_is_worth(factor: float) -> Tokens:
    """As many tokens of guessing's."""
    return lambda is_launched: factor if is_launched else 1.0


@given(st.floats(1.01, 5.0))
def test_steps_are_launched_where_that_is_worth_more(factor: float) -> None:
    stretches = Stretches()
    assert run(stretches, 20_000, launching_is_worth(factor)) > 0.96 * 20_000


@given(st.floats(0.1, 0.99))
def test_and_guessed_for_where_it_is_not(factor: float) -> None:
    stretches = Stretches()
    assert run(stretches, 20_000, launching_is_worth(factor)) < 0.04 * 20_000


@given(st.lists(st.floats(0.2, 5.0).filter(lambda factor: abs(factor - 1.0) > 0.01), min_size=2, max_size=6))
def test_what_changes_is_noticed_within_a_stretch(factors: list[float]) -> None:
    stretches = Stretches()
    for factor in factors:
        run(stretches, 2 * (LONGEST + TRIAL) + SHORTEST, launching_is_worth(factor))
        num_launched = run(stretches, SHORTEST, launching_is_worth(factor))
        # A trial may lie there, or the end of one and the beginning of another.
        assert num_launched >= SHORTEST - TRIAL if factor > 1.0 else num_launched <= TRIAL


def test_another_number_of_sequences_says_nothing() -> None:
    """Sixty-four sequences are slower each than one: guessing was not bad only since the crowd came afterwards."""
    stretches = Stretches()
    run(stretches, SHORTEST + TRIAL, launching_is_worth(0.5), num_sequences=1)
    assert not stretches.is_launching
    run(stretches, SHORTEST * 2, launching_is_worth(0.5), num_sequences=1)
    assert stretches.is_launching
    run(stretches, TRIAL, lambda is_launched: 1.2, num_sequences=64)
    assert not stretches.is_launching


@pytest.mark.parametrize("seconds", [0.0, SECONDS])
def test_what_cannot_be_launched_is_guessed_for(seconds: float) -> None:
    """As where every request has a penalty: steps are run one after another even where they were to be launched."""
    stretches = Stretches()
    num_launching = 0
    for _ in range(10_000):
        num_launching += stretches.is_launching
        stretches.observe(False, 8, 8, seconds)
    assert num_launching < 0.3 * 10_000
