"""Stories of the step: who computes what, when, and what streams out."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

from support.checking_runner import alone
from support.scheduling import World, make_request, shares
from trierarch.python_backend.errors import ExecutorFailed
from trierarch.python_backend.request import FinishReason, TokenLogprob
from trierarch.python_backend.scheduling.live_request import LiveRequest
from trierarch.python_backend.scheduling.plan import ScheduledSequence, SequenceOutput, StepOutput


def test_a_prompt_is_computed_then_one_token_a_step() -> None:
    world = World(num_blocks=10, block_size=4)
    world.add("a", prompt=6, max_tokens=3)
    assert [shares(world.step()) for _ in range(3)] == [[("a", 0, 6)], [("a", 6, 1)], [("a", 7, 1)]]
    assert world.output("a") == alone(make_request("a", 6, max_tokens=3), 0, 1000, ())[0]
    assert [len(delta.token_ids) for delta in world.deltas["a", 0]] == [1, 1, 1]
    assert world.last("a").finish_reason is FinishReason.LENGTH
    assert world.kv.num_used_blocks == 0


def test_requests_join_and_leave_at_any_step() -> None:
    world = World(num_blocks=10, block_size=4)
    world.add("a", prompt=(1, 2), max_tokens=3)
    world.step()
    world.add("b", prompt=(3, 4, 5), max_tokens=1)
    assert shares(world.step()) == [("a", 2, 1), ("b", 0, 3)]
    assert shares(world.step()) == [("a", 3, 1)]


def test_a_long_prompt_is_computed_in_chunks_beside_those_that_run() -> None:
    world = World(num_blocks=20, block_size=4, max_num_tokens=5)
    world.add("a", prompt=(1, 2), max_tokens=5)
    world.step()
    world.add("b", prompt=9, max_tokens=2)
    assert shares(world.step()) == [("a", 2, 1), ("b", 0, 4)]
    assert not world.deltas["b", 0]
    assert shares(world.step()) == [("a", 3, 1), ("b", 4, 4)]
    assert shares(world.step()) == [("a", 4, 1), ("b", 8, 1)]
    assert len(world.output("b")) == 1


def test_blocks_are_taken_chunk_by_chunk() -> None:
    world = World(num_blocks=20, block_size=4, max_num_tokens=5)
    world.add("a", prompt=13)
    world.step()
    assert world.kv.num_used_blocks == 2


def test_without_chunked_prefill_a_prompt_is_computed_whole_or_waits() -> None:
    world = World(num_blocks=40, block_size=4, max_num_tokens=5, max_seq_len=20, enable_chunked_prefill=False)
    world.add("a", prompt=13)
    world.add("b", prompt=(7,) * 12)
    assert shares(world.step()) == [("a", 0, 13)]
    assert shares(world.step()) == [("a", 13, 1), ("b", 0, 12)]


def test_no_more_than_the_batch_runs() -> None:
    world = World(num_blocks=40, block_size=4, max_batch_size=2)
    for name in "abc":
        world.add(name, prompt=3, max_tokens=2)
    assert [name for name, *_ in shares(world.step())] == ["a", "b"]
    world.step()
    assert [name for name, *_ in shares(world.step())] == ["c"]


def test_a_cached_prefix_is_not_computed_again() -> None:
    world = World(num_blocks=10, block_size=4)
    world.add("a", prompt=10, max_tokens=1)
    world.run()
    world.add("b", prompt=10, max_tokens=1)
    assert shares(world.step()) == [("b", 8, 2)]
    assert world.output("a") == world.output("b")
    usage = world.usage("b")
    assert (usage.num_prompt_tokens, usage.num_cached_tokens, usage.num_reused_blocks) == (10, 8, 2)
    assert (usage.num_new_blocks, usage.num_output_tokens) == (1, 1)


def test_output_is_cached_too() -> None:
    world = World(num_blocks=10, block_size=4)
    world.add("a", prompt=6, max_tokens=3)
    world.run()
    world.add("b", prompt=(*range(1, 7), *world.output("a"), 5))
    assert shares(world.step()) == [("b", 8, 2)]


def test_hits_are_counted_once_however_often_a_waiting_sequence_is_looked_at() -> None:
    world = World(num_blocks=6, block_size=4)
    world.add("a", prompt=5, max_tokens=1)
    world.run()
    world.add("b", prompt=(9,) * 16, max_tokens=5)
    world.step()
    world.add("c", prompt=5)
    for _ in range(3):
        world.step()
    assert world.scheduler.stats().reused_blocks == 0
    world.run()
    stats = world.scheduler.stats()
    assert stats.reused_blocks == 1
    assert stats.cached_blocks == stats.stored_blocks - stats.removed_blocks > 0


def test_the_least_urgent_is_preempted_and_comes_back() -> None:
    world = World(num_blocks=4, block_size=2, enable_prefix_caching=False)
    world.add("old", prompt=(1, 2), max_tokens=5)
    world.now = 1.0
    world.add("new", prompt=(3, 4), max_tokens=5)
    plans = [shares(world.step()) for _ in range(3)]
    assert plans[0] == [("old", 0, 2), ("new", 0, 2)]
    assert plans[2] == [("old", 3, 1), ("new", 3, 1)]
    plan = world.step()
    assert shares(plan) == [("old", 4, 1)]
    assert plan.finished_sequence_ids == (1,)
    assert world.scheduler.stats().num_paused_requests == 1
    world.run()
    assert world.usage("new").num_preemptions == 1
    assert world.output("new") == alone(make_request("", (3, 4), max_tokens=5), 0, 1000, ())[0]


def test_the_less_urgent_gives_way_even_if_it_started_first_and_has_its_share_of_the_step() -> None:
    world = World(num_blocks=5, block_size=2)
    world.add("low", prompt=(1, 2), max_tokens=7)
    world.step()
    world.add("high", prompt=(3, 4), max_tokens=7, priority=1)
    assert [shares(world.step()) for _ in range(3)][-1] == [("low", 4, 1), ("high", 3, 1)]
    plan = world.step()
    assert shares(plan) == [("high", 4, 1)]
    assert plan.finished_sequence_ids == (0,)
    world.run()
    assert world.output("low") == alone(make_request("", (1, 2), max_tokens=7), 0, 1000, ())[0]


def test_a_preempted_sequence_finds_what_is_left_of_its_blocks() -> None:
    world = World(num_blocks=5, block_size=2)
    world.add("old", prompt=(1, 2), max_tokens=7)
    world.add("new", prompt=(3, 4, 5, 6), max_tokens=5)
    while ("new", 0) not in world.sequences or not world.sequences["new", 0].num_preemptions:
        world.step()
    world.run()
    assert world.runner.num_computed < (2 + 7 - 1) + 2 * (4 + 5 - 1)
    assert world.scheduler.stats().reused_blocks == 0


def test_a_preempted_sequence_that_would_fit_again_waits_for_the_next_step() -> None:
    world = World(num_blocks=5, block_size=2)
    world.add("a", prompt=3, max_tokens=6)
    world.add("b", prompt=3, max_tokens=6)
    for _ in range(2):
        world.step()
    assert (world.table("a"), world.table("b")) == ([0, 1], [2, 3])
    plan = world.step()
    assert shares(plan) == [("a", 4, 1)]
    assert plan.finished_sequence_ids == (1,)
    assert shares(world.step()) == [("a", 5, 1), ("b", 4, 1)]
    assert world.table("b") == [0, 1, 2]


def test_a_sequence_does_not_start_on_blocks_that_running_ones_are_about_to_need() -> None:
    world = World(num_blocks=6, block_size=2, max_num_tokens=4)
    world.add("a", prompt=9, max_tokens=2)
    world.step()
    world.add("b", prompt=(7, 7), max_tokens=2)
    world.run()
    assert world.usage("a").num_preemptions == 0
    assert world.usage("b").num_preemptions == 0


def test_an_end_token_ends_and_is_not_shown() -> None:
    request = make_request("", (1, 2), max_tokens=9)
    tokens, _ = alone(request, 0, 1000, ())
    world = World(num_blocks=10, block_size=4, end_ids=(tokens[2],))
    world.add("a", prompt=(1, 2), max_tokens=9, logprobs=0)
    world.add("own", prompt=(1, 2), max_tokens=9, end_ids=(tokens[0],))
    world.add("never", prompt=(1, 2), max_tokens=9, end_ids=())
    world.add("late", prompt=(1, 2), max_tokens=9, end_ids=tuple(tokens[:4]), min_tokens=3)
    world.run()
    assert world.output("a") == tokens[:2]
    assert world.last("a").finish_reason is FinishReason.STOP
    assert (world.last("a").token_ids, world.last("a").logprobs) == ((), ())
    assert world.output("own") == []
    assert world.output("never") == tokens
    assert world.output("late") == tokens[:3]


def test_a_stop_word_ends_and_is_shown_and_may_not_reach_into_the_prompt() -> None:
    tokens, _ = alone(make_request("", (1, 2), max_tokens=9), 0, 1000, ())
    world = World(num_blocks=10, block_size=4)
    world.add("a", prompt=(1, 2), max_tokens=9, stop_words=((tokens[3],), (2, tokens[0]), tuple(tokens[1:3])))
    world.add("late", prompt=(1, 2), max_tokens=9, stop_words=((tokens[1],),), min_tokens=2)
    world.run()
    assert world.output("a") == tokens[:3]
    assert world.last("a").finish_reason is FinishReason.STOP
    assert world.output("late") == tokens


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_siblings_share_the_prompt_blocks_and_draw_apart(enable_prefix_caching: bool) -> None:
    world = World(num_blocks=20, block_size=4, enable_prefix_caching=enable_prefix_caching)
    world.add("a", prompt=10, max_tokens=3, n=3)
    assert shares(world.step()) == [("a", 0, 10)]
    assert shares(world.step()) == [("a", 10, 1), ("a", 8, 2), ("a", 8, 2)]
    tables = [world.table("a", index) for index in range(3)]
    assert tables == [[0, 1, 2], [0, 1, 3], [0, 1, 4]]
    world.run()
    for index in range(3):
        assert world.output("a", index) == alone(make_request("a", 10, max_tokens=3), index, 1000, ())[0]
    assert world.kv.num_used_blocks == 0


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_siblings_never_share_the_block_of_the_last_prompt_token(enable_prefix_caching: bool) -> None:
    world = World(num_blocks=20, block_size=4, enable_prefix_caching=enable_prefix_caching)
    world.add("a", prompt=8, max_tokens=3, n=2)
    world.step()
    assert shares(world.step()) == [("a", 8, 1), ("a", 4, 4)]


def test_siblings_share_even_with_a_leader_that_ends_at_once() -> None:
    world = World(num_blocks=20, block_size=4, enable_prefix_caching=False)
    world.add("a", prompt=10, max_tokens=1, n=2)
    world.step()
    assert shares(world.step()) == [("a", 8, 2)]


def test_siblings_beyond_the_batch_wait_and_share_later() -> None:
    world = World(num_blocks=20, block_size=4, max_batch_size=2, enable_prefix_caching=False)
    world.add("a", prompt=10, max_tokens=2, n=4)
    world.run()
    assert [shares(plan) for plan in world.plans[:4]] == [
        [("a", 0, 10)],
        [("a", 10, 1), ("a", 8, 2)],
        [("a", 10, 1), ("a", 8, 2)],
        [("a", 10, 1), ("a", 8, 2)],
    ]


def test_the_id_is_free_again_when_all_siblings_are_through() -> None:
    world = World(num_blocks=20, block_size=4)
    world.add("a", prompt=3, max_tokens=2, n=2)
    world.step()
    world.scheduler.abort("a", index=0)
    world.run()
    world.collect()
    assert world.last("a", 0).finish_reason is FinishReason.CANCELLED
    assert world.last("a", 1).finish_reason is FinishReason.LENGTH
    world.deltas.clear()
    world.add("a", prompt=3)
    world.run()


def test_prompt_logprobs_come_once_with_the_first_delta_and_forbid_a_prefix_hit() -> None:
    world = World(num_blocks=20, block_size=2, max_num_tokens=3)
    world.add("warm", prompt=7, max_tokens=1)
    world.run()
    world.add("a", prompt=7, max_tokens=2, prompt_logprobs=0, n=2)
    world.run()
    expected = (None, *(TokenLogprob(token, 1.0 - token) for token in range(2, 8)))
    assert [delta.prompt_logprobs for delta in world.deltas["a", 0]] == [expected, None]
    assert [delta.prompt_logprobs for delta in world.deltas["a", 1]] == [None, None]
    assert world.usage("a", 0).num_cached_tokens == 0


def test_prompt_logprobs_are_not_repeated_when_the_prompt_is_recomputed() -> None:
    world = World(num_blocks=7, block_size=2, max_num_tokens=2)
    world.add("old", prompt=(1, 2), max_tokens=9)
    world.step()
    world.add("new", prompt=7, max_tokens=2, prompt_logprobs=0)
    while not world.deltas["new", 0]:
        world.step()
    assert world.sequences["new", 0].num_preemptions == 1
    expected = (None, *(TokenLogprob(token, 1.0 - token) for token in range(2, 8)))
    assert world.deltas["new", 0][0].prompt_logprobs == expected
    world.run()
    assert world.deltas["new", 0][1].prompt_logprobs is None


def test_accepted_drafts_and_the_bonus_token_come_in_one_delta() -> None:
    world = World(num_blocks=10, block_size=4, guesses=(True, True, False))
    world.add("a", prompt=5, max_tokens=8)
    assert shares(world.step()) == [("a", 0, 5)]
    assert len(world.output("a")) == 3
    assert world.sequences["a", 0].num_computed_tokens == 7
    world.run()
    assert world.output("a") == alone(make_request("a", 5, max_tokens=8), 0, 1000, ())[0]
    assert [len(delta.token_ids) for delta in world.deltas["a", 0]] == [3, 3, 2]
    usage = world.usage("a")
    assert (usage.num_draft_tokens, usage.num_accepted_draft_tokens) == (3 + 3 + 1, 2 + 2 + 1)


def test_room_for_drafts_is_given_back_when_they_are_refused() -> None:
    world = World(num_blocks=10, block_size=2, guesses=(False, True, True, True))
    world.add("a", prompt=4, max_tokens=9)
    plan = world.plan()
    assert len(plan.scheduled[0].draft_token_ids) == 4
    assert len(plan.scheduled[0].sequence.block_table) == 4
    world.scheduler.update(plan, world.runner.run(plan))
    assert len(plan.scheduled[0].sequence.block_table) == 2


def test_nobody_loses_a_block_to_a_guess() -> None:
    world = World(num_blocks=4, block_size=2, guesses=(False,) * 8)
    world.add("a", prompt=3, max_tokens=5)
    world.add("b", prompt=2, max_tokens=2)
    plan = world.plan()
    assert [(len(item.sequence.block_table), len(item.draft_token_ids)) for item in plan.scheduled] == [(3, 3), (1, 0)]
    world.scheduler.update(plan, world.runner.run(plan))
    world.run()
    assert world.usage("a").num_preemptions == world.usage("b").num_preemptions == 0


def test_drafts_come_only_where_a_token_is_drawn() -> None:
    world = World(num_blocks=10, block_size=2, guesses=(True,), max_num_tokens=3)
    world.add("a", prompt=5, max_tokens=2)
    assert [len(item.draft_token_ids) for item in world.step().scheduled] == [0]
    assert [len(item.draft_token_ids) for item in world.step().scheduled] == [1]
    assert world.last("a").finish_reason is FinishReason.LENGTH


def test_a_stop_inside_accepted_drafts_drops_the_rest() -> None:
    tokens, _ = alone(make_request("", 5, max_tokens=9), 0, 1000, ())
    world = World(num_blocks=10, block_size=2, guesses=(True,) * 4, end_ids=(tokens[2],))
    world.add("a", prompt=5, max_tokens=9)
    world.run()
    assert world.output("a") == tokens[:2]
    assert world.kv.match(world.sequences["a", 0]) == [0, 1, 2]
    assert world.kv.cache is not None
    assert len(world.kv.cache) == 3


def test_a_failed_step_ends_those_it_concerns() -> None:
    world = World(num_blocks=20, block_size=4)
    world.add("a", prompt=3)
    world.add("b", prompt=3)
    world.step()
    error = ExecutorFailed("boom")
    world.scheduler.fail(error, [world.sequences["a", 0].sequence_id, 77])
    world.add("c", prompt=3)
    world.step()
    assert (world.last("a").finish_reason, world.last("a").error) == (FinishReason.ERROR, error)
    world.scheduler.fail(error)
    world.collect()
    assert {world.last(name).finish_reason for name in "abc"} == {FinishReason.ERROR}
    assert world.kv.num_used_blocks == 0


@pytest.mark.parametrize("drawn", [None, (), (1, 2)])
def test_a_runner_that_breaks_the_contract_is_noticed(drawn: tuple[int, ...] | None) -> None:
    world = World(num_blocks=20, block_size=4)
    world.add("a", prompt=3)
    plan = world.scheduler.schedule()
    outputs = {} if drawn is None else {0: SequenceOutput(drawn)}
    with pytest.raises(RuntimeError, match="sequence 0: the runner drew"):
        world.scheduler.update(plan, StepOutput(outputs))


def test_what_ends_while_a_step_runs_is_left_out_of_the_update() -> None:
    world = World(num_blocks=20, block_size=4)
    world.add("a", prompt=3)
    plan = world.scheduler.schedule()
    output = world.runner.run(plan)
    world.scheduler.abort("a")
    world.add("a", prompt=5)
    world.scheduler.update(plan, output)
    world.collect()
    assert world.last("a").finish_reason is FinishReason.CANCELLED
    assert world.output("a") == []


def test_usage_has_the_times() -> None:
    world = World(num_blocks=20, block_size=4, max_num_tokens=4)
    world.now = 1.0
    world.add("a", prompt=8, max_tokens=2)
    for now in (2.0, 3.0, 4.0):
        world.now = now
        world.step()
    usage = world.usage("a")
    assert usage.arrival_ns == 1_000_000_000
    assert usage.first_scheduled_ns == 2_000_000_000
    assert usage.first_token_ns == 3_000_000_000
    assert usage.last_token_ns == 4_000_000_000


def test_stats() -> None:
    world = World(num_blocks=20, block_size=4, max_num_tokens=8, max_batch_size=4)
    world.add("a", prompt=3, n=2)
    world.step()
    world.add("b", prompt=9)
    world.step()
    stats = world.scheduler.stats()
    assert (stats.num_active_requests, stats.num_scheduled_requests, stats.num_steps) == (2, 2, 2)
    assert (stats.num_context_requests, stats.num_context_tokens) == (2, 3 + 4)
    assert (stats.max_requests, stats.max_blocks, stats.tokens_per_block) == (4, 20, 4)
    assert (stats.used_blocks, stats.free_blocks, stats.used_slots) == (3, 17, 4 + 3 + 4)


def calls_of_a_step(num_waiting: int) -> int:
    """Calls of functions, resumed generators included, while a step is planned in which none of so many finds blocks."""
    world = World(num_blocks=5, block_size=4, max_queue_size=1000, max_adapters=2)
    world.add("runs", prompt=12)
    world.step()
    for number in range(num_waiting):
        world.add(str(number), prompt=12)
    num_calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    gc.disable()  # or what other tests left behind may end, and be counted, in this very step
    sys.setprofile(count)
    try:
        plan = world.scheduler.schedule()
    finally:
        sys.setprofile(None)
        gc.enable()
    assert shares(plan) == [("runs", 12, 1)]
    return num_calls


def test_a_step_costs_no_more_the_more_wait() -> None:
    assert calls_of_a_step(500) == calls_of_a_step(10)


def test_what_is_pooled_of_a_prompt_is_added_up_and_begins_anew_with_it() -> None:
    live = LiveRequest.create(make_request("a", 6, return_embedding=True), (), 0)
    (sequence,) = live.sequences

    def take(start: int, end: int, value: float) -> float | None:
        item = ScheduledSequence(sequence, start, end - start, samples=end == 6)
        told = live.take_embedding(item, SequenceOutput(pooled=np.array([value], np.float32)))
        return None if told is None else float(told[0])

    assert take(0, 4, 1.0) is None
    assert take(0, 3, 2.0) is None, "preempted: computed again from the first token"
    assert take(3, 6, 8.0) == 10.0
    with pytest.raises(RuntimeError, match="pooled nothing"):
        live.take_embedding(ScheduledSequence(sequence, 0, 6), SequenceOutput())
