"""Rules over the course of a sequence: words of several tokens, min_tokens, counts, and log-probs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.sampling import OpenSampler, exact_distribution, make_sequence

VOCAB_SIZE = 6
WORDS = st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=3).map(tuple), max_size=4).map(tuple)


@settings(deadline=None, max_examples=60)
@given(
    sampling=st.fixed_dictionaries(
        {
            "seed": st.integers(0, 10),
            "bad_words": WORDS,
            "stop_words": WORDS,
            "min_tokens": st.integers(0, 12),
            "repetition_penalty": st.sampled_from([1.0, 0.7, 1.5]),
            "presence_penalty": st.sampled_from([0.0, 0.5]),
            "frequency_penalty": st.sampled_from([0.0, 0.3, -0.3]),
            "logit_bias": st.dictionaries(st.integers(0, VOCAB_SIZE - 1), st.floats(-3, 3), max_size=3),
            "temperature": st.sampled_from([0.0, 0.6, 1.0]),
        }
    ),
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=5).map(tuple),
)
def test_every_step_of_a_sequence_is_exact(
    open_sampler: OpenSampler, sampling: dict[str, Any], prompt: tuple[int, ...]
) -> None:
    sampler = open_sampler(VOCAB_SIZE, (0,))
    sequence = make_sequence(prompt, **sampling)
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        logits = torch.randn(1, VOCAB_SIZE, generator=generator)
        with np.errstate(invalid="ignore"):
            expected = exact_distribution(logits[0].numpy(), sequence, (0,))
        actual = sampler.probabilities(logits, [sequence])[0].numpy()
        output = sampler.sample(logits, [sequence])[0]
        if output.error is not None:
            assert not actual.any()
            return
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)
        assert expected[output.token_ids[0]] > 0
        sequence.token_ids += output.token_ids
        for word in sampling["bad_words"]:
            assert tuple(sequence.token_ids[-len(word) :]) != word


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bad_word_may_begin_in_the_prompt(open_sampler: OpenSampler, temperature: float) -> None:
    sampler = open_sampler(VOCAB_SIZE, ())
    sequence = make_sequence((1, 2), bad_words=((2, 3, 4), (2, 5)), temperature=temperature, seed=0)
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 5] = 50.0
    logits[0, 3] = 40.0
    logits[0, 4] = 30.0
    drawn = []
    for _ in range(2):
        drawn += sampler.sample(logits, [sequence])[0].token_ids
        sequence.token_ids[2:] = drawn
    assert drawn == [3, 5]


def test_logprobs_are_of_the_models_own_distribution(open_sampler: OpenSampler) -> None:
    vocab_size = 50
    sampler = open_sampler(vocab_size, ())
    logits = torch.randn(4, vocab_size, generator=torch.Generator().manual_seed(2)) * 3
    expected = logits.double().log_softmax(1)
    sequences = [
        make_sequence(temperature=0.0, logprobs=3),
        make_sequence(temperature=5.0, top_k=7, logit_bias={1: 4.0}, repetition_penalty=2.0, seed=1, logprobs=20),
        make_sequence(seed=1),
        make_sequence(seed=1, logprobs=0),
    ]
    outputs = sampler.sample(logits, sequences)
    assert outputs[2].logprobs is None
    for row, num_top in ((0, 3), (1, 20), (3, 0)):
        output = outputs[row]
        assert output.logprobs is not None
        (logprob,) = output.logprobs
        assert (logprob.token_id,) == output.token_ids
        assert logprob.logprob == pytest.approx(float(expected[row, logprob.token_id]), abs=1e-5)
        best = expected[row].topk(num_top)
        assert [token for token, _ in logprob.top] == best.indices.tolist()
        assert [value for _, value in logprob.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_prompt_logprobs(open_sampler: OpenSampler) -> None:
    sampler = open_sampler(VOCAB_SIZE, ())
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
    expected = logits.log_softmax(1)
    for k in (0, 2, 20):
        logprobs = sampler.prompt_logprobs(logits, [5, 0, 3], k)
        assert [each.token_id for each in logprobs] == [5, 0, 3]
        for row, each in enumerate(logprobs):
            assert each.logprob == pytest.approx(float(expected[row, each.token_id]), abs=1e-5)
            assert [token for token, _ in each.top] == expected[row].argsort(descending=True)[:k].tolist()
    assert sampler.prompt_logprobs(torch.empty(0, VOCAB_SIZE), [], 2) == ()
