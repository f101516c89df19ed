"""Log-probabilities of given tokens and of their most likely rivals."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import torch

from trierarch.python_backend.executors.torch.device import on_device
from trierarch.python_backend.request import TokenLogprob


def token_logprobs(logits: torch.Tensor, token_ids: Rows[int], num_top: Rows[int]) -> list[TokenLogprob]:
    """One TokenLogprob a row.

    logits: (n, vocab), as the model gave them. num_top: how many rivals each row lists, the token itself among them
    where it is that likely.
    """
    normalizer = logits.logsumexp(1)
    chosen = logits.gather(1, on_device(token_ids, logits.device)[:, None])[:, 0] - normalizer
    top = logits.topk(min(max(num_top), logits.shape[1]))
    # One copy for all of them; float64 holds every float32 and every id.
    numbers = (chosen[:, None], top.values - normalizer[:, None], top.indices)
    found = torch.cat([part.double() for part in numbers], 1).cpu()
    values, ids = found[:, 1:].chunk(2, 1)
    return [
        TokenLogprob(token_id, logprob, tuple(zip(of_row[:k], its_values[:k], strict=True)))
        for token_id, logprob, of_row, its_values, k in zip(
            token_ids, found[:, 0].tolist(), ids.long().tolist(), values.tolist(), num_top, strict=True
        )
    ]


def edited_logprobs(logprobs: torch.Tensor, token_ids: Rows[int], num_top: Rows[int]) -> list[TokenLogprob]:
    """See Sampler._edited_logprobs; logprobs: (n, vocab), edited."""
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logprobs.device)[:, None])[:, 0].tolist()
    top = logprobs.topk(min(max(num_top), logprobs.shape[1]))
    told = []
    for token_id, logprob, ids, values, k in zip(
        token_ids, chosen, top.indices.tolist(), top.values.tolist(), num_top, strict=True
    ):
        rivals = tuple(rival for rival in zip(ids[:k], values[:k], strict=True) if math.isfinite(rival[1]))
        told.append(TokenLogprob(token_id, logprob, rivals))
    return told
