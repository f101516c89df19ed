"""Whom text drafters are asked about in a step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.drafting import make_sequence
from trierarch.python_backend.speculation.drafter import Ask
from trierarch.python_backend.speculation.turns import Turns

GUESS_SECONDS = 19e-6  # never a whole number of them in a hundredth of so many milliseconds, up to rounding


def asks(count: int) -> list[Ask]:
    return [Ask(make_sequence(index, [1, 2, 3]), 4) for index in range(count)]


def chosen(turns: Turns, crowd: list[Ask], step_seconds: float) -> list[int]:
    """Whom it chooses, each guess taking GUESS_SECONDS."""
    picked = turns.choose(crowd, step_seconds)
    turns.took(len(picked), len(picked) * GUESS_SECONDS)
    return [ask.sequence.sequence_id for ask in picked]


def test_everybody_is_asked_about_while_nobody_knows_what_that_takes() -> None:
    crowd = asks(64)
    assert chosen(Turns(), crowd, 0.0) == list(range(64))
    assert chosen(Turns(), crowd, 0.030) == list(range(64))


def test_guesses_that_take_nothing_of_a_step_are_made_for_everybody() -> None:
    turns, crowd = Turns(), asks(4)
    chosen(turns, crowd, 0.010)
    assert chosen(turns, crowd, 0.010) == [0, 1, 2, 3]


@settings(deadline=None)
@given(count=st.integers(1, 70), step_ms=st.integers(1, 18))
def test_a_step_gives_little_of_itself_and_everybody_has_a_turn(count: int, step_ms: int) -> None:
    turns, crowd, step_seconds = Turns(), asks(count), step_ms / 1000
    chosen(turns, crowd, step_seconds)
    most = max(1, int(0.01 * step_seconds / GUESS_SECONDS))
    rounds = [chosen(turns, crowd, step_seconds) for _ in range(-(-count // most))]
    assert all(len(picked) <= most or len(picked) <= count <= most for picked in rounds)
    assert {index for picked in rounds for index in picked} == set(range(count))


def test_who_is_new_is_asked_about_at_once() -> None:
    turns, crowd = Turns(), asks(30)
    chosen(turns, crowd[:20], 0.001)
    assert chosen(turns, crowd[:20], 0.001) == [0]
    assert set(chosen(turns, crowd, 0.001)) == {1, *range(20, 30)}


def test_whose_drafts_are_right_is_asked_about_in_every_step_until_they_are_not_for_long() -> None:
    turns, crowd = Turns(), asks(20)
    chosen(turns, crowd, 0.001)
    turns.was_right(7)
    assert all(7 in chosen(turns, crowd, 0.001) for _ in range(7))
    assert sum(7 in chosen(turns, crowd, 0.001) for _ in range(19)) <= 1
    turns.was_right(7)
    assert 7 in chosen(turns, crowd, 0.001)


@pytest.mark.parametrize("step", [1, 5])
def test_who_is_forgotten_is_new_again(step: int) -> None:
    turns, crowd = Turns(), asks(20)
    for _ in range(step):
        chosen(turns, crowd, 0.001)
    turns.was_right(3)
    turns.forget([3, 99])
    assert 3 in chosen(turns, crowd, 0.001)
    assert sum(3 in chosen(turns, crowd, 0.001) for _ in range(10)) == 0
