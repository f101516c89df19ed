from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trierarch.python_backend.speculation.step_cost import StepCost

SIZES = st.integers(1, 300)


def measured(*steps: tuple[int, int, float], times: int = 50) -> StepCost:
    cost = StepCost()
    for _ in range(times):
        for num_sequences, num_tokens, seconds in steps:
            cost.observe(num_sequences, num_tokens, seconds)
    return cost


def test_nothing_is_known_before_anything_was_measured() -> None:
    assert StepCost().seconds(1, 1) == 0.0


def test_what_was_measured_is_what_is_expected() -> None:
    cost = measured((1, 1, 0.010), (1, 8, 0.012), (4, 4, 0.015))
    assert cost.seconds(1, 1) == pytest.approx(0.010)
    assert cost.seconds(1, 8) == pytest.approx(0.012)
    assert cost.seconds(4, 4) == pytest.approx(0.015)


def test_between_two_measured_sizes_it_is_interpolated() -> None:
    cost = measured((1, 2, 0.010), (1, 6, 0.018))
    assert cost.seconds(1, 4) == pytest.approx(0.014)


def test_tokens_cost_something_even_before_their_price_is_known() -> None:
    cost = measured((1, 1, 0.010))
    assert 0.010 < cost.seconds(1, 2) < cost.seconds(1, 9) < 0.020


def test_other_numbers_of_sequences_lend_the_slope_that_is_missing() -> None:
    cost = measured((1, 1, 0.010), (1, 8, 0.024), (2, 2, 0.013))
    assert cost.seconds(2, 8) == pytest.approx(0.013 + 6 * 0.002, rel=0.15)


def test_one_disturbed_step_counts_for_little() -> None:
    cost = measured((1, 1, 0.010))
    cost.observe(1, 1, 5.0)
    assert cost.seconds(1, 1) < 0.014


def test_a_size_whose_first_step_was_disturbed_is_not_taken_for_dear() -> None:
    """It would not be tried again, and nobody would ever know."""
    cost = measured((2, 2, 0.010), (2, 4, 0.011))
    cost.observe(2, 10, 0.080)
    assert cost.seconds(2, 10) < 0.020


def test_a_size_that_is_dear_is_known_to_be_after_a_second_step() -> None:
    cost = measured((2, 2, 0.010), (2, 4, 0.011))
    cost.observe(2, 10, 0.080)
    cost.observe(2, 10, 0.080)
    assert cost.seconds(2, 10) == pytest.approx(0.080)


def test_what_was_long_not_measured_is_forgotten() -> None:
    cost = measured((2, 2, 0.010), (2, 4, 0.011), (2, 10, 0.080), times=3)
    for _ in range(1000):
        cost.observe(2, 2, 0.010)
        cost.observe(2, 4, 0.011)
    assert cost.seconds(2, 10) < 0.020


@given(noise=st.lists(st.floats(0.97, 1.03), min_size=30, max_size=30))
def test_a_slope_over_a_short_span_is_not_believed_at_once(noise: list[float]) -> None:
    cost = StepCost()
    for factor in noise:
        cost.observe(8, 8, 0.0115 * factor)
    cost.observe(8, 9, 0.0118 * 1.03)
    assert 0.012 < cost.seconds(8, 40) < 0.040


def test_a_lasting_change_is_followed() -> None:
    cost = measured((1, 1, 0.010))
    for _ in range(60):
        cost.observe(1, 1, 0.020)
    assert cost.seconds(1, 1) == pytest.approx(0.020, rel=0.05)


@given(
    steps=st.lists(st.tuples(SIZES, SIZES, st.floats(1e-6, 10.0)), min_size=1, max_size=40),
    asked=st.tuples(SIZES, SIZES),
)
def test_expectations_are_never_nothing_and_never_beyond_all_reason(
    steps: list[tuple[int, int, float]], asked: tuple[int, int]
) -> None:
    cost = StepCost()
    for num_sequences, num_tokens, seconds in steps:
        cost.observe(num_sequences, num_tokens, seconds)
    assert 0.0 < cost.seconds(*asked) < float("inf")


def test_noise_makes_no_step_free() -> None:
    cost = measured((1, 1, 0.030), (1, 9, 0.001), (4, 4, 0.010))
    assert cost.seconds(4, 4) == pytest.approx(0.010)
    assert cost.seconds(4, 100) >= 0.010
    assert cost.seconds(4, 1) > 0.0
