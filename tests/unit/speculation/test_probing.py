from __future__ import annotations

import itertools

from trierarch.python_backend.speculation.probing import Probing


def tries(probing: Probing, num_steps: int, load: int) -> list[int]:
    return [step for step in range(num_steps) if probing.is_due(load)]


def test_the_first_try_comes_at_once_and_the_next_ones_ever_later() -> None:
    due = tries(Probing(), 4000, load=1)
    assert due[0] == 0
    waits = [later - sooner for sooner, later in itertools.pairwise(due)]
    assert waits == sorted(waits)
    assert waits[0] < waits[-1] == waits[-2], "the wait has an end"
    assert len(due) < 4000 / 100


def test_it_is_tried_soon_when_the_load_falls() -> None:
    probing = Probing()
    tries(probing, 4000, load=8)
    assert tries(probing, 40, load=8) == []
    assert tries(probing, 40, load=4)


def test_it_is_tried_soon_after_it_paid() -> None:
    probing = Probing()
    tries(probing, 4000, load=8)
    probing.paid()
    assert tries(probing, 40, load=8)


def test_a_try_without_a_result_goes_on_for_a_while_and_counts_for_one() -> None:
    def tried(probing: Probing, has_result: bool) -> list[int]:
        due = []
        for step in range(200):
            if probing.is_due(load=1):
                due.append(step)
                probing.tried(has_result)
        return due

    quick, slow = Probing(), Probing()
    once, often = tried(quick, True), tried(slow, False)
    assert often[:17] == list(range(17))
    assert often[17] - often[16] == once[1] - once[0]
