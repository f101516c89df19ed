"""Off the CPU the host hears of a step's tokens once, and draws just what it draws when it looks in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support.sampling import make_sequence, one_answer_sampler, torch_sampler

KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 3.0, "top_p": 0.95},
    {"top_k": 50, "top_p": 0.9},
    {"min_p": 0.01},
    {"frequency_penalty": 0.5, "logit_bias": {4: 9.0}, "bad_words": ((5,),)},
]
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}
"""Operators whose result, or its size, the host must know before it goes on."""


class Waiting(TorchDispatchMode):
    """Notes the operators that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.waits += [name] if name in WAITS else []
        return func(*args, **(kwargs or {}))


@pytest.fixture
def copies() -> Iterator[list[str]]:
    """What reads tensors, in the order it was called."""
    calls: list[str] = []

    def noting(name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def noted(tensor: torch.Tensor, *arguments: Any) -> Any:
            calls.append(name)
            return original(tensor, *arguments)

        return mock.patch.object(torch.Tensor, name, noted)

    with noting("cpu"), noting("tolist"), noting("numpy"):
        yield calls


def test_it_draws_what_the_other_draws() -> None:
    """Also beside a row of NaN, and one whose every token is masked."""
    logits = torch.randn(60, 5000, generator=torch.Generator().manual_seed(3)) * 2
    logits[7], logits[8] = torch.nan, -torch.inf
    kinds = [KINDS[row % len(KINDS)] for row in range(len(logits))]
    sequences = [make_sequence((1, 2, 3), (4, 5, 4), seed=row, **kind) for row, kind in enumerate(kinds)]
    expected = torch_sampler(5000, (0,)).sample(logits, sequences)
    found = one_answer_sampler(5000, (0,)).sample(logits, sequences)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert [row for row, one in enumerate(found) if one.error is not None] == [7, 8]
    assert (
        one_answer_sampler(5000, (0,))
        .weights(logits, sequences)
        .equal(torch_sampler(5000, (0,)).weights(logits, sequences))
    )


@pytest.mark.parametrize("num_logprobs", [None, 3])
def test_it_reads_the_device_once_for_tokens_and_once_for_log_probs(
    copies: list[str], num_logprobs: int | None
) -> None:
    logits = torch.randn(12, 300, generator=torch.Generator().manual_seed(4))
    sequences = [
        make_sequence((1, 2), (4, 5), seed=row, logprobs=num_logprobs, **KINDS[row % len(KINDS)]) for row in range(12)
    ]
    with Waiting() as waiting:
        outputs = one_answer_sampler(300, (0,)).sample(logits, sequences)
    assert all(output.token_ids for output in outputs)
    assert waiting.waits == []
    reads = 1 if num_logprobs is None else 2
    assert copies.count("cpu") == reads
    assert copies[0] == "cpu"
    assert "numpy" not in copies
    # What is made into lists was copied before: tokens and what is to be said of them, then log-probs.
    assert copies.count("tolist") == {1: 1, 2: 4}[reads]
