"""Steps that are planned while the one before them runs: which can be, who is in them, and what is left of those in vain."""

from __future__ import annotations

from typing import Any

import pytest

from support.checking_runner import next_token
from support.scheduling import World, make_request, shares
from trierarch.python_backend.request import FinishReason, Guide, GuideKind, Request
from trierarch.python_backend.scheduling.ahead import is_blind, may_launch
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence

VOCAB = 1000


def nobody(request: Request) -> bool:
    return False


def sequence_of(request: Request) -> Sequence:
    return Sequence(0, request, 0, [*request.prompt_token_ids])


def first_drawn(prompt: int, count: int) -> list[int]:
    known = list(range(1, prompt + 1))
    for _ in range(count):
        known.append(next_token(known, 0, VOCAB))
    return known[prompt:]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, True),
        ({"temperature": 0.0}, True),
        ({"top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 1, "n": 3}, True),
        ({"logit_bias": {1: 2.0}, "min_tokens": 2, "end_ids": (1,)}, True),
        ({"stop_words": ((1, 2),)}, True),
        ({"stop_words": ((1, 2),), "min_tokens": 2}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"bad_words": ((1,),)}, False),
        ({"logprobs": 0}, False),
        ({"prompt_logprobs": 0}, False),
        ({"return_generation_logits": True}, False),
        ({"return_context_logits": True}, False),
        ({"guide": Guide(GuideKind.JSON)}, False),
    ],
)
def test_who_is_drawn_for_without_the_host(sampling: dict[str, Any], expected: bool) -> None:
    sequence = sequence_of(make_request("r", prompt=4, **sampling))
    assert is_blind(ScheduledSequence.of(sequence, 0, 4), nobody) is expected


def test_what_min_tokens_holds_back_a_stop_word_no_longer_needs() -> None:
    sequence = sequence_of(make_request("r", prompt=4, stop_words=((1, 2),), min_tokens=2))
    assert [is_blind(ScheduledSequence.of(sequence, 3 + n, 1, 4 + n), nobody) for n in range(4)] == [0, 0, 1, 1]


def test_a_chunk_that_draws_nothing_is_blind_whatever_is_drawn_behind_it() -> None:
    sequence = sequence_of(make_request("r", prompt=4, logprobs=1))
    assert is_blind(ScheduledSequence.of(sequence, 0, 3), nobody)
    assert is_blind(ScheduledSequence.of(sequence, 0, 3), lambda _: True)
    assert not is_blind(ScheduledSequence.of(sequence, 0, 4), nobody)


def test_drafts_and_those_who_may_guess_are_waited_for() -> None:
    item = ScheduledSequence.of(sequence_of(make_request("r", prompt=4)), 0, 4)
    assert may_launch(Plan((item,)), nobody)
    assert not may_launch(Plan((item,)), lambda _: True)
    assert not may_launch(Plan((ScheduledSequence(item.sequence, 0, 4, (1,), True),)), nobody)
    assert not may_launch(Plan(()), nobody)


def test_it_plans_ahead_to_the_last_token_and_no_further() -> None:
    world = World(num_blocks=8, block_size=2)
    world.add("a", prompt=3, max_tokens=5)
    assert world.fly(max_steps=100) == 4
    assert [shares(plan) for plan in world.plans] == [[("a", 0, 3)], *([("a", start, 1)] for start in range(3, 7))]
    assert world.output("a") == first_drawn(3, 5)
    assert world.num_in_vain == 0
    assert not world.scheduler.requests()


def test_who_ends_meanwhile_was_computed_in_vain_and_leaves_nothing() -> None:
    drawn = first_drawn(3, 3)
    world = World(num_blocks=8, block_size=2, end_ids=(drawn[2],))
    world.add("a", prompt=3, max_tokens=9)
    world.fly(max_steps=100)
    assert world.output("a") == drawn[:2]
    assert world.last("a").finish_reason is FinishReason.STOP
    assert world.num_in_vain == 1
    assert world.kv.num_free_blocks == 8
    # What is found of it is what it computed of known tokens: two blocks of the five.
    world.add("b", prompt=(1, 2, 3, *drawn[:2], 7, 7, 7), max_tokens=1)
    world.run()
    assert world.usage("b").num_cached_tokens == 4


def test_blocks_of_the_step_in_flight_are_kept_and_those_of_a_lost_one_given_back() -> None:
    world = World(num_blocks=8, block_size=1)
    world.add("a", prompt=2, max_tokens=5)
    plan = world.plan()
    output = world.runner.launch(plan)
    ahead = world.scheduler.schedule_ahead(plan, nobody)
    assert ahead is not None
    world.note(plan)
    world.scheduler.update(plan, output, ahead)
    assert len(world.table("a")) == 3
    lost = world.scheduler.schedule_ahead(ahead, nobody)
    assert lost is not None
    world.scheduler.update(ahead, world.runner.launch(ahead))
    assert len(world.table("a")) == 3
    world.scheduler.check_integrity()
    world.run()
    assert world.output("a") == first_drawn(2, 5)


def test_long_prompts_go_on_while_their_first_piece_is_in_flight() -> None:
    world = World(num_blocks=16, block_size=2, enable_prefix_caching=False, max_batch_size=2, max_num_tokens=4)
    world.add("a", prompt=9, max_tokens=2)
    world.add("b", prompt=3, max_tokens=2)
    world.fly(max_steps=100)
    assert [shares(plan) for plan in world.plans][:4] == [
        [("a", 0, 4)],
        [("a", 4, 4)],
        [("a", 8, 1), ("b", 0, 3)],
        [("a", 9, 1), ("b", 3, 1)],
    ]
    assert world.output("a") == first_drawn(9, 2)


def test_nobody_is_preempted_for_a_plan_ahead() -> None:
    world = World(num_blocks=4, block_size=1, enable_prefix_caching=False)
    world.add("a", prompt=1, max_tokens=4)
    world.add("b", prompt=1, max_tokens=4)
    assert world.fly(max_steps=100) == 1
    tables = world.table("a")[:], world.table("b")[:]
    plan = world.plan()
    assert [len(table) for table in tables] == [2, 2]
    assert [item.sequence.request.request_id for item in plan.scheduled] == ["a"]
    world.note(plan)
    world.scheduler.update(plan, world.run_plan(plan))
    world.run()
    assert world.usage("b").num_preemptions == 1
    assert world.output("b") == first_drawn(1, 4)


def test_arrivals_start_ahead() -> None:
    world = World(num_blocks=32, block_size=2, enable_prefix_caching=False)
    world.add("a", prompt=3, max_tokens=8)
    arrivals = iter("bc")

    def arrive() -> None:
        if (name := next(arrivals, None)) is not None:
            world.add(name, prompt=4, max_tokens=3, n=2)

    assert world.fly(100, arrive) > 5
    assert [shares(plan) for plan in world.plans][1:3] == [
        [("a", 3, 1), ("b", 0, 4)],
        [("a", 4, 1), ("b", 4, 1), ("c", 0, 4)],
    ]
    assert not world.scheduler.requests()
    assert world.output("c", 0) == first_drawn(4, 3)


def test_whom_a_plan_ahead_passes_over_starts_in_the_next_one() -> None:
    world = World(num_blocks=32, block_size=2, enable_prefix_caching=False)
    world.add("a", prompt=3, max_tokens=8)

    def arrive() -> None:
        if not world.plans and "b" not in {request.request_id for request in world.scheduler.requests()}:
            world.add("b", prompt=4, max_tokens=3, logprobs=0)

    assert world.fly(100, arrive) == 1
    assert shares(world.plan()) == [("a", 4, 1), ("b", 0, 4)]
