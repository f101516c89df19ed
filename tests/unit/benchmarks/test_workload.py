from __future__ import annotations

import itertools

from trierarch.benchmarks.workload import FIRST_TOKEN, LAST_TOKEN, Workload

WORKLOAD = Workload(seed=7)


def test_the_same_seed_and_key_give_the_same_prompt() -> None:
    assert WORKLOAD.prompt("decode/0/0", 64) == Workload(seed=7).prompt("decode/0/0", 64)


def test_another_seed_or_key_gives_prompts_that_share_no_prefix() -> None:
    prompt = WORKLOAD.prompt("decode/0/0", 512)

    for other in (WORKLOAD.prompt("decode/0/1", 512), Workload(seed=8).prompt("decode/0/0", 512)):
        assert prompt[:4] != other[:4]


def test_prompts_of_one_call_share_no_prefix() -> None:
    prompts = WORKLOAD.prompts("aggregate/0/0", [32] * 32)

    assert len({tuple(prompt[:4]) for prompt in prompts}) == 32


def test_tokens_are_ordinary_ones() -> None:
    prompt = WORKLOAD.prompt("any", 10_000)

    assert FIRST_TOKEN <= min(prompt) <= max(prompt) < LAST_TOKEN


def test_lengths_spread_evenly_from_short_to_long() -> None:
    lengths = WORKLOAD.spread(32)

    assert (lengths[0], lengths[-1], sum(lengths) / 32) == (32, 512, 272)
    assert {later - earlier for earlier, later in itertools.pairwise(lengths)} <= {15, 16}
    assert WORKLOAD.spread(1) == [32]


def test_other_numbers_of_streams_leave_the_rest_as_it_is() -> None:
    narrow = WORKLOAD.with_streams((1, 4))

    assert narrow.concurrencies == (1, 4)
    assert narrow.with_streams(WORKLOAD.concurrencies) == WORKLOAD
    assert WORKLOAD.with_streams(()) == WORKLOAD


def test_a_trial_is_small_and_keeps_the_seed() -> None:
    quick = Workload.quick(7)

    assert quick.seed == 7
    assert quick.num_output_tokens < WORKLOAD.num_output_tokens
    assert quick.prompt("key", 8) == WORKLOAD.prompt("key", 8)
