"""What a guide allows: nothing else is drawn, and what is drawn of it is drawn as if the rest had never been there."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from support.sampling import OpenSampler, make_sequence
from trierarch.python_backend.sequence import Continuation

VOCAB_SIZE = 1003
"""No multiple of 8 or 32."""


def mask_of(tokens: list[int]) -> bytes:
    bits = np.zeros(VOCAB_SIZE, np.uint8)
    bits[tokens] = 1
    return np.packbits(bits, bitorder="little").tobytes()


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"seed": 3}, {"seed": 3, "top_p": 0.7, "top_k": 9}])
def test_a_mask_is_as_good_as_a_ban_of_all_others(open_sampler: OpenSampler, sampling: dict[str, float]) -> None:
    chance = random.Random(5)
    logits = torch.randn((6, VOCAB_SIZE), generator=torch.Generator().manual_seed(5)) * 3
    before = logits.clone()
    sampler = open_sampler(VOCAB_SIZE, (1,))
    masked, banned = [], []
    for row in range(6):
        allowed = chance.sample(range(VOCAB_SIZE), 1 + 40 * row)
        others = {token: -np.inf for token in range(VOCAB_SIZE) if token not in allowed}
        prompt = (row + 2, 5)
        masked.append(Continuation(make_sequence(prompt, **sampling), (), mask_of(allowed) if row != 3 else None))
        banned.append(make_sequence(prompt, **sampling, logit_bias=others if row != 3 else {}))
    drawn = sampler.sample(logits, masked)
    assert [output.token_ids for output in drawn] == [output.token_ids for output in sampler.sample(logits, banned)]
    assert torch.equal(logits, before)


def test_no_bias_opens_what_a_mask_shuts(open_sampler: OpenSampler) -> None:
    sequence = make_sequence((2,), temperature=0.0, logit_bias={7: 1e9, 8: 5.0}, repetition_penalty=0.01)
    (output,) = open_sampler(VOCAB_SIZE, ()).sample(
        torch.zeros((1, VOCAB_SIZE)), [Continuation(sequence, (), mask_of([2, 8, 9]))]
    )
    assert output.token_ids == (8,)


def test_a_mask_that_leaves_nothing_is_an_error_of_its_row(open_sampler: OpenSampler) -> None:
    sequences = [make_sequence((2,), temperature=0.0) for _ in range(2)]
    rows = [Continuation(sequences[0], (), mask_of([])), Continuation(sequences[1], (), mask_of([4]))]
    bad, good = open_sampler(VOCAB_SIZE, ()).sample(torch.zeros((2, VOCAB_SIZE)), rows)
    assert "guide" in str(bad.error)
    assert good.token_ids == (4,)
