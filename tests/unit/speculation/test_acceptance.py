from __future__ import annotations

import random

import pytest

from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.speculation.acceptance import Acceptance

SUFFIX = DrafterKind.SUFFIX


def test_nothing_is_certain_before_anything_was_seen() -> None:
    chances = Acceptance().run(1, SUFFIX, 0, 4)
    assert chances == sorted(chances, reverse=True)
    assert all(0 < chance < 1 for chance in chances)
    assert Acceptance().run(1, SUFFIX, 0, 0) == []


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8, 1.0])
def test_rates_come_near_what_happens(rate: float) -> None:
    acceptance, chance = Acceptance(), random.Random(1)
    for _ in range(400):
        num_right = 0
        while num_right < 4 and chance.random() < rate:
            num_right += 1
        acceptance.observe(1, SUFFIX, 2, 4, num_right)
    expected = [rate, rate**2, rate**3, rate**4]
    assert acceptance.run(1, SUFFIX, 2, 4) == pytest.approx(expected, abs=0.2)


def test_a_change_of_subject_is_noticed_within_a_few_drafts() -> None:
    acceptance = Acceptance()
    for _ in range(200):
        acceptance.observe(1, SUFFIX, 0, 4, 4)
    assert acceptance.run(1, SUFFIX, 0, 1)[0] > 0.95
    for _ in range(10):
        acceptance.observe(1, SUFFIX, 0, 4, 0)
    assert acceptance.run(1, SUFFIX, 0, 1)[0] < 0.5


def test_what_one_sequence_taught_helps_a_new_one_but_not_against_its_own_experience() -> None:
    acceptance = Acceptance()
    for _ in range(100):
        acceptance.observe(1, SUFFIX, 3, 2, 2)
    (new,) = acceptance.run(2, SUFFIX, 3, 1)
    assert new > 0.9
    for _ in range(20):
        acceptance.observe(2, SUFFIX, 3, 2, 0)
    assert acceptance.run(2, SUFFIX, 3, 1)[0] < 0.3 < acceptance.run(1, SUFFIX, 3, 1)[0]
    acceptance.forget([2, 99])
    assert acceptance.run(2, SUFFIX, 3, 1) == acceptance.run(7, SUFFIX, 3, 1)


def test_grounds_and_drafters_are_learnt_apart() -> None:
    acceptance = Acceptance()
    for sequence_id in range(100):
        acceptance.observe(sequence_id, SUFFIX, 7, 1, 1)
        acceptance.observe(sequence_id, SUFFIX, 0, 1, 0)
        acceptance.observe(sequence_id, None, 0, 1, 1)
    assert acceptance.run(500, SUFFIX, 7, 1)[0] > 0.9
    assert acceptance.run(500, SUFFIX, 0, 1)[0] < 0.1
    assert acceptance.run(500, None, 0, 1)[0] > 0.9


def test_a_token_behind_a_wrong_one_says_nothing() -> None:
    acceptance = Acceptance()
    before = acceptance.run(1, SUFFIX, 0, 2)
    for _ in range(50):
        acceptance.observe(1, SUFFIX, 0, 2, 0)
    after = acceptance.run(1, SUFFIX, 0, 2)
    assert after[0] < before[0]
    assert after[1] / after[0] == pytest.approx(before[1] / before[0])
