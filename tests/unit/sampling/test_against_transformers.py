"""The same cuts and penalties as transformers' own logits processors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from support.sampling import OpenSampler, make_sequence

VOCAB_SIZE = 300
PROMPT, OUTPUT = (4, 9, 9, 250), (17, 4, 31)
CASES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "top_k": ({"top_k": 20}, [TopKLogitsWarper(20)]),
    "top_p": ({"top_p": 0.85}, [TopPLogitsWarper(0.85)]),
    "min_p": ({"min_p": 0.03}, [MinPLogitsWarper(0.03)]),
    "temperature": ({"temperature": 0.6}, [TemperatureLogitsWarper(0.6)]),
    "repetition": ({"repetition_penalty": 1.7}, [RepetitionPenaltyLogitsProcessor(1.7)]),
    "min_tokens": ({"min_tokens": 4}, [MinNewTokensLengthLogitsProcessor(4, 4, [0])]),
    "bad_words": (
        {"bad_words": ((8,), (4, 31, 60), (5, 61))},
        [NoBadWordsLogitsProcessor([[8], [4, 31, 60], [5, 61]])],
    ),
    "bias": ({"logit_bias": {3: 2.0, 200: -4.0}}, [SequenceBiasLogitsProcessor([[[3], 2.0], [[200], -4.0]])]),
    "together": (
        {"repetition_penalty": 1.2, "temperature": 1.4, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            TemperatureLogitsWarper(1.4),
            TopKLogitsWarper(50),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.02),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_probabilities_equal(open_sampler: OpenSampler, name: str) -> None:
    sampling, processors = CASES[name]
    logits = torch.randn(5, VOCAB_SIZE, generator=torch.Generator().manual_seed(9)) * 3
    sampler = open_sampler(VOCAB_SIZE, (0,))
    actual = sampler.probabilities(logits, [make_sequence(PROMPT, OUTPUT, **sampling)] * 5)
    input_ids = torch.tensor([[*PROMPT, *OUTPUT]] * 5)
    expected = LogitsProcessorList(processors)(input_ids, logits.clone()).softmax(1)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-8)
