"""What is drawn follows the exact distribution, for each parameter alone and for combinations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from support.sampling import AnySampler, OpenSampler, exact_distribution, make_sequence
from trierarch.python_backend.executors.cpu import sampler as cpu_sampler
from trierarch.python_backend.executors.cpu.truncation import nucleus_threshold
from trierarch.python_backend.executors.torch import sampler as torch_sampler
from trierarch.python_backend.executors.torch.truncation import quantize, truncate

VOCAB_SIZE = 40
END_IDS = (7,)
NUM_DRAWS = 4000

ALONE: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"temperature": 0.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.5},
    {"presence_penalty": 1.0},
    {"frequency_penalty": 0.7},
    {"frequency_penalty": -0.5},
    {"logit_bias": {3: 2.5, 4: -1.0, 5: float("-inf")}},
    {"bad_words": ((8,),)},
    {"bad_words": ((3, 9), (2, 3, 11), (2, 12), (1, 2, 3, 3, 3, 13))},
    {"min_tokens": 4},
    {"min_tokens": 4, "end_ids": (10, 11)},
    {"min_tokens": 4, "end_ids": (), "stop_words": ((12,), (3, 14), (4, 15))},
    {"min_tokens": 3, "stop_words": ((12,),)},
]
TOGETHER: list[dict[str, Any]] = [
    {"temperature": 1.3, "top_k": 12, "top_p": 0.8, "min_p": 0.05},
    {"top_k": 6, "top_p": 0.6, "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    {"temperature": 0.0, "repetition_penalty": 3.0, "bad_words": ((0,), (3, 20)), "logit_bias": {20: 3.0, 0: 4.0}},
    {"temperature": 0.7, "min_p": 0.02, "min_tokens": 9, "stop_words": ((3, 1),), "logit_bias": {7: 50.0, 1: 1.0}},
]
IDS = [str(each) for each in [*ALONE, *TOGETHER]]
HISTORY: dict[str, Any] = {"prompt": (1, 2, 2), "output": (3, 3, 3)}


def random_logits(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.fixture
def sampler(open_sampler: OpenSampler) -> AnySampler:
    return open_sampler(VOCAB_SIZE, END_IDS)


@pytest.mark.parametrize("sampling", [*ALONE, *TOGETHER], ids=IDS)
def test_probabilities_are_exact(sampler: AnySampler, sampling: dict[str, Any]) -> None:
    logits = random_logits(1)
    sequence = make_sequence(**HISTORY, **sampling)
    expected = exact_distribution(logits[0].numpy(), sequence, END_IDS)
    actual = sampler.probabilities(logits, [sequence])[0].numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)
    assert ((actual > 0) == (expected > 0)).all()


@pytest.mark.parametrize("sampling", [*ALONE, *TOGETHER], ids=IDS)
def test_draws_follow_the_distribution(sampler: AnySampler, sampling: dict[str, Any]) -> None:
    logits = random_logits(2)
    sequences = [make_sequence(**HISTORY, **sampling, seed=seed) for seed in range(NUM_DRAWS)]
    expected = exact_distribution(logits[0].numpy(), sequences[0], END_IDS)
    outputs = sampler.sample(logits.expand(NUM_DRAWS, -1), sequences)
    counts = np.bincount([output.token_ids[0] for output in outputs], minlength=VOCAB_SIZE)
    _assert_follows(counts, expected)


def test_unseeded_draws_follow_the_distribution(sampler: AnySampler) -> None:
    logits = random_logits(3)
    outputs = sampler.sample(logits.expand(NUM_DRAWS, -1), [make_sequence(top_p=0.95) for _ in range(NUM_DRAWS)])
    counts = np.bincount([output.token_ids[0] for output in outputs], minlength=VOCAB_SIZE)
    # Chance differs from run to run here: a bound that a right sampler passes but once in 10**9 runs.
    _assert_follows(counts, exact_distribution(logits[0].numpy(), make_sequence(top_p=0.95)), significance=1e-9)


def test_positions_of_one_seed_are_independent_draws(sampler: AnySampler) -> None:
    logits = random_logits(4)
    sequences = [make_sequence(output=(0,) * position, seed=11) for position in range(NUM_DRAWS)]
    outputs = sampler.sample(logits.expand(NUM_DRAWS, -1), sequences)
    tokens = [output.token_ids[0] for output in outputs]
    _assert_follows(np.bincount(tokens, minlength=VOCAB_SIZE), exact_distribution(logits[0].numpy(), make_sequence()))
    is_likely = np.asarray(tokens) == int(logits[0].argmax())
    table = np.histogram2d(is_likely[:-1], is_likely[1:], bins=2)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def draw_tensors(weights: torch.Tensor, uniform: float) -> list[int]:
    uniforms = torch.full((len(weights),), uniform, dtype=torch.float64)
    tokens: list[int] = torch_sampler.draw(weights, uniforms).tolist()
    return tokens


def draw_arrays(weights: torch.Tensor, uniform: float) -> list[int]:
    return [cpu_sampler.draw(row, uniform) for row in weights.numpy()]


@pytest.mark.parametrize("draw", [draw_tensors, draw_arrays])
@given(
    weights=st.lists(st.one_of(st.just(0.0), st.floats(2.0**-40, 1.0, width=32)), min_size=1, max_size=600),
    uniform=st.floats(0.0, 1.0, exclude_max=True),
)
def test_a_token_of_zero_weight_is_never_drawn(
    draw: Callable[[torch.Tensor, float], list[int]], weights: list[float], uniform: float
) -> None:
    rows = torch.tensor([weights, [1.0, *([0.0] * (len(weights) - 1))]], dtype=torch.float32)
    rows /= max(1.0, float(rows.sum(1).max()))
    first, second = draw(rows, uniform)
    assert second == 0
    if any(weights):
        assert rows[0, first] > 0
        below = float(rows[0, :first].double().sum()) / float(rows[0].double().sum())
        upto = float(rows[0, : first + 1].double().sum()) / float(rows[0].double().sum())
        assert below - 1e-6 <= uniform <= upto + 1e-6


def test_the_nucleus_is_found_however_wide_it_is(open_sampler: OpenSampler) -> None:
    vocab_size = 6000
    sampler = open_sampler(vocab_size, ())
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(5)) * torch.tensor(
        [[0.1], [2.0], [9.0]]
    )
    for top_p in (0.2, 0.9, 0.9999999):
        sequences = [make_sequence(top_p=top_p)] * 3
        actual = sampler.probabilities(logits, sequences).numpy()
        for row in range(3):
            expected = exact_distribution(logits[row].numpy(), sequences[row])
            # A token at the very edge may fall either way in float32.
            assert abs(int((actual[row] > 0).sum()) - int((expected > 0).sum())) <= (2 if top_p < 0.99 else 600)
            np.testing.assert_allclose(actual[row], expected, rtol=1e-3, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    scale=st.sampled_from([0.0, 0.05, 1.0, 4.0, 30.0]),
    # Nearer to 1 the last weight kept is so small that several floats share its quanta, which the sorting below cannot
    # tell apart.
    top_p=st.floats(1e-6, 1.0 - 1e-6),
    seed=st.integers(0, 1000),
    is_coarse=st.booleans(),
)
def test_the_nucleus_is_the_one_that_sorting_finds(scale: float, top_p: float, seed: int, is_coarse: bool) -> None:
    logits = torch.randn(2, 3000, generator=torch.Generator().manual_seed(seed)) * torch.tensor([[scale], [20.0]])
    weights = (logits.to(torch.bfloat16).float() if is_coarse else logits).softmax(1)
    expected = weights.clone()
    for row in expected:
        ordered = sorted(quantize(row).tolist(), reverse=True)
        wanted, held, last = math.ceil(top_p * float(sum(ordered))), 0, 0
        for last in ordered:
            held += last
            if held >= wanted:
                break
        row[quantize(row) < last] = 0.0
    by_arrays = [torch.from_numpy(np.where(row < nucleus_threshold(row, top_p), 0, row)) for row in weights.numpy()]
    truncate(weights, [make_sequence(top_p=top_p).request.sampling] * 2)
    assert torch.equal(weights, expected)
    assert torch.equal(torch.stack(by_arrays), expected)


def _assert_follows(counts: np.ndarray, expected: np.ndarray, significance: float = 1e-3) -> None:
    assert counts[expected == 0.0].sum() == 0
    is_rare = expected * counts.sum() < 5
    observed = np.append(counts[~is_rare], counts[is_rare].sum())
    wanted = np.append(expected[~is_rare], expected[is_rare].sum()) * counts.sum()
    if wanted[-1] == 0.0:
        observed, wanted = observed[:-1], wanted[:-1]
    if len(observed) > 1:
        assert stats.chisquare(observed, wanted).pvalue > significance
