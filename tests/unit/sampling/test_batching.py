"""A row's draw is its own affair: seeds, order, company, preemption and broken neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.sampling import AnySampler, OpenSampler, make_sequence
from trierarch.python_backend.errors import ExecutorFailed, InvalidRequest

VOCAB_SIZE = 500
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"top_k": 3},
    {"top_k": 40, "top_p": 0.9},
    {"top_p": 0.999, "temperature": 1.5},
    {"min_p": 0.05, "repetition_penalty": 1.4},
    {"frequency_penalty": 0.5, "presence_penalty": 0.5, "logit_bias": {4: 1.0}},
    {"temperature": 0.0, "bad_words": ((5,),), "logprobs": 2},
]


MakeSampler = Callable[[], AnySampler]


@pytest.fixture(scope="session")
def make_sampler(open_sampler: OpenSampler) -> MakeSampler:
    return lambda: open_sampler(VOCAB_SIZE, (0,))


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.sampled_from(KINDS)), min_size=1, max_size=40),
    order=st.randoms(use_true_random=False),
)
def test_company_and_order_change_nothing(
    make_sampler: MakeSampler, rows: list[tuple[int, dict[str, Any]]], order: Any
) -> None:
    logits = torch.randn(len(rows), VOCAB_SIZE, generator=torch.Generator().manual_seed(len(rows))) * 3
    sequences = [make_sequence((1, 2, 3), (4, 5, 4), seed=seed, **kind) for seed, kind in rows]
    together = make_sampler().sample(logits, sequences)
    alone = [make_sampler().sample(logits[i : i + 1], [sequence])[0] for i, sequence in enumerate(sequences)]
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)
    again = make_sampler().sample(logits[shuffled], [sequences[row] for row in shuffled])
    assert [output.token_ids for output in again] == [together[row].token_ids for row in shuffled]


def test_weights_are_the_same_bit_for_bit_in_any_company(make_sampler: MakeSampler) -> None:
    logits = torch.randn(23, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)) * 3
    sequences = [make_sequence((1, 2, 3), (4, 5, 4), **KINDS[row % len(KINDS)]) for row in range(23)]
    together = make_sampler().weights(logits, sequences)
    for row, sequence in enumerate(sequences):
        assert torch.equal(make_sampler().weights(logits[row : row + 1], [sequence])[0], together[row])


def test_forgetting_a_sequence_changes_nothing(make_sampler: MakeSampler) -> None:
    kept, forgetful = make_sampler(), make_sampler()
    sampling: dict[str, Any] = {"seed": 3, "repetition_penalty": 1.3, "frequency_penalty": 0.3, "logit_bias": {9: 2.0}}
    one, other = make_sequence((1, 2), **sampling), make_sequence((1, 2), **sampling)
    logits = torch.randn(30, 1, VOCAB_SIZE, generator=torch.Generator().manual_seed(6))
    for step in logits:
        one.token_ids += kept.sample(step, [one])[0].token_ids
        other.token_ids += forgetful.sample(step, [other])[0].token_ids
        forgetful.forget([other.sequence_id, 10**9])
    assert one.token_ids == other.token_ids
    assert len(set(one.output_token_ids)) > 5


def test_the_sequences_of_one_request_draw_differently_and_by_seed_plus_index(make_sampler: MakeSampler) -> None:
    sampler = make_sampler()
    logits = torch.zeros(1, VOCAB_SIZE)
    draws = [sampler.sample(logits, [make_sequence(seed=20, index=index)])[0].token_ids for index in range(8)]
    assert len(set(draws)) > 4
    assert draws[5] == sampler.sample(logits, [make_sequence(seed=25)])[0].token_ids
    wrapped = sampler.sample(logits, [make_sequence(seed=2**64 - 1, index=1)])[0]
    assert wrapped.token_ids == sampler.sample(logits, [make_sequence(seed=0)])[0].token_ids


def test_greedy_ties_go_to_the_lowest_id(make_sampler: MakeSampler) -> None:
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[:, [300, 17, 450]] = 1.0
    sequences = [make_sequence(temperature=0.0), make_sequence(temperature=0.0, logit_bias={499: -1.0})]
    assert [output.token_ids for output in make_sampler().sample(logits, sequences)] == [(17,), (17,)]


def test_a_broken_row_fails_alone(make_sampler: MakeSampler) -> None:
    logits = torch.randn(6, VOCAB_SIZE, generator=torch.Generator().manual_seed(7))
    logits[1, 3] = math.nan
    logits[2, 3] = math.nan
    logits[3, 3] = math.inf
    everything = {token: -math.inf for token in range(VOCAB_SIZE)}
    sequences = [
        make_sequence(seed=1, logprobs=1),
        make_sequence(temperature=0.0, logprobs=1),
        make_sequence(top_k=5, repetition_penalty=1.2, seed=1, logprobs=1),
        make_sequence(seed=1),
        make_sequence(temperature=0.0, logit_bias=everything),
        make_sequence(temperature=0.0),
    ]
    outputs = make_sampler().sample(logits, sequences)
    errors = [type(output.error) for output in outputs]
    assert errors == [type(None), ExecutorFailed, ExecutorFailed, ExecutorFailed, InvalidRequest, type(None)]
    assert [len(output.token_ids) for output in outputs] == [1, 0, 0, 0, 0, 1]
    assert outputs[1].logprobs is None
    assert outputs[0] == make_sampler().sample(logits[:1], sequences[:1])[0]
    probabilities = make_sampler().probabilities(logits, sequences)
    assert probabilities.isfinite().all()
    assert probabilities.any(1).tolist() == [True, False, False, False, False, True]


def test_values_beyond_reason_stay_sound(make_sampler: MakeSampler) -> None:
    logits = torch.randn(7, VOCAB_SIZE, generator=torch.Generator().manual_seed(8)) * 5
    best = [int(token) for token in logits.argmax(1)]
    sequences = [
        make_sequence(temperature=1e-300, seed=1),
        make_sequence(temperature=1e300, seed=1),
        make_sequence(output=(1, 1), frequency_penalty=-1e300, seed=1),
        make_sequence(output=(1, 1), presence_penalty=1e300, repetition_penalty=1e-300, seed=1),
        make_sequence(logit_bias={3: 1e300, 4: -1e300}, repetition_penalty=1e300, seed=1),
        make_sequence((3, 4), logit_bias={3: 1e300}, repetition_penalty=1e-300, frequency_penalty=-1e300, seed=1),
        make_sequence(temperature=1e300, bad_words=((5,),), seed=1),
    ]
    outputs = make_sampler().sample(logits, sequences)
    assert all(output.error is None for output in outputs)
    assert outputs[0].token_ids == (best[0],)
    assert outputs[2].token_ids == (1,)
    assert outputs[4].token_ids == (3,)
    assert outputs[5].token_ids[0] in (3, 4)  # both saturate


def test_logits_are_left_alone_and_an_empty_batch_is_fine(make_sampler: MakeSampler) -> None:
    logits = torch.randn(1, VOCAB_SIZE)
    before = logits.clone()
    make_sampler().sample(logits, [make_sequence(output=(3,), repetition_penalty=2.0, top_k=4, bad_words=((1,),))])
    assert torch.equal(logits, before)
    assert make_sampler().sample(torch.empty(0, VOCAB_SIZE), []) == []
