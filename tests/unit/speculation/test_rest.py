"""When steps go without guesses."""

from __future__ import annotations

from trierarch.python_backend.speculation.rest import Rest


def share_of_steps(rest: Rest, gain: float, num_steps: int = 2000, load: int = 8) -> float:
    """Of steps that guess, when each gains so much."""
    num_awake = 0
    for _ in range(num_steps):
        if rest.is_over(load):
            num_awake += 1
            rest.note(gain)
    return num_awake / num_steps


def test_what_pays_is_done_in_every_step() -> None:
    assert share_of_steps(Rest(), 0.01) == 1.0


def test_what_does_not_pay_is_tried_ever_more_rarely_and_never_given_up() -> None:
    rest = Rest()
    assert share_of_steps(rest, -1.0) < 0.06
    assert 0.0 < share_of_steps(rest, -1.0) < 0.04


def test_one_bout_that_pays_ends_all_rest() -> None:
    rest = Rest()
    share_of_steps(rest, -1.0)
    share_of_steps(rest, 1.0, num_steps=300)
    assert share_of_steps(rest, 1.0) == 1.0


def test_a_load_that_falls_wakes_at_once() -> None:
    rest = Rest()
    while rest.is_over(8):
        rest.note(-1.0)
    assert not rest.is_over(8)
    assert rest.is_over(7)


def test_a_few_dear_steps_among_good_ones_are_no_reason_to_rest() -> None:
    rest = Rest()
    for step in range(1000):
        assert rest.is_over(8)
        rest.note(-0.2 if step % 2 else 0.5)
