"""Both samplers draw the same tokens from the same logits, at the size of a real vocabulary too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.sampling import CpuSamplerOfTensors, make_sequence, torch_sampler

END_IDS = (0,)
KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.7, "top_k": 50},
    {"top_p": 0.9},
    {"top_p": 0.9, "temperature": 3.0},
    {"top_k": 50, "top_p": 0.9, "logprobs": 5},
    {"top_k": 3000, "min_p": 0.001},
    {"frequency_penalty": 0.5, "presence_penalty": 0.5, "logit_bias": {4: 9.0}, "bad_words": ((5,),)},
]


@pytest.mark.parametrize("is_coarse", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("vocab_size", [40, 5000, 49_152])
def test_the_same_tokens(vocab_size: int, kind: dict[str, Any], is_coarse: bool) -> None:
    logits = torch.randn(24, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 3
    if is_coarse:
        logits = logits.bfloat16().float()  # many ties
    by_torch, by_numpy = torch_sampler(vocab_size, END_IDS), CpuSamplerOfTensors(vocab_size, END_IDS)
    sequences = [make_sequence((1, 2, 3), (4, 5, 4), seed=seed, **kind) for seed in range(len(logits))]
    expected, actual = by_torch.sample(logits, sequences), by_numpy.sample(logits, sequences)
    assert [output.token_ids for output in actual] == [output.token_ids for output in expected]
    torch.testing.assert_close(
        by_numpy.probabilities(logits, sequences), by_torch.probabilities(logits, sequences), rtol=1e-4, atol=1e-8
    )
    for one, other in zip(actual, expected, strict=True):
        for mine, reference in zip(one.logprobs or (), other.logprobs or (), strict=True):
            assert mine.logprob == pytest.approx(reference.logprob, abs=1e-4)
            assert [value for _, value in mine.top] == pytest.approx([value for _, value in reference.top], abs=1e-4)
