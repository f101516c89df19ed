from __future__ import annotations

import pytest

from trierarch.benchmarks.kv_waste import GOAL_PERCENT, LOADS, Load, block_size, measure, requests, run
from trierarch.benchmarks.registry import Options


def test_the_mixed_load_keeps_the_goal() -> None:
    (report,) = run(Options(is_quick=True, seed=3))

    (row,) = [row for row in report.rows if row.goal is not None]
    assert row.figure == "kv_waste_mixed"
    assert row.ours is not None
    assert 0 < row.ours < GOAL_PERCENT
    assert row.met is True
    assert row.ratio is not None
    assert row.ratio < 0.1


def test_the_same_seed_gives_the_same_waste() -> None:
    assert measure(LOADS[0], 50, 1) == measure(LOADS[0], 50, 1)
    assert measure(LOADS[0], 50, 1) != measure(LOADS[0], 50, 2)


def test_one_sequence_wastes_what_can_be_worked_out() -> None:
    """16 slots a block: of a prompt of 32 and 3 tokens drawn, blocks hold 32/32, then 33/48 and 34/48 computed."""
    load = Load(name="one", prompt_tokens=(32, 32), output_tokens=(4, 4), requests_per_second=1.0)
    steps = [(0.010 + 32 * 0.0015, 0.0), (0.0115, 15 / 48), (0.0115, 14 / 48)]  # the fourth token ends it: no blocks
    expected = sum(seconds * waste for seconds, waste in steps) / sum(seconds for seconds, _ in steps)

    assert block_size() == 16
    assert measure(load, 1, seed=0).paged == pytest.approx(expected)


def test_requests_arrive_in_order_and_keep_their_ranges() -> None:
    load = LOADS[0]
    drawn = list(requests(load, 200, seed=5))

    assert [request.arrival_time for request in drawn] == sorted(request.arrival_time for request in drawn)
    for request in drawn:
        assert load.prompt_tokens[0] <= len(request.prompt_token_ids) <= load.prompt_tokens[1]
        assert load.output_tokens[0] <= request.sampling.max_tokens <= load.output_tokens[1]
