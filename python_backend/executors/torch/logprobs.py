"""Log-probabilities of given tokens and of their most likely rivals, under the model's own distribution."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from trierarch.python_backend.request import TokenLogprob


def token_logprobs(logits: torch.Tensor, token_ids: Rows[int], num_top: Rows[int]) -> list[TokenLogprob]:
    """One TokenLogprob a row.

    logits: (n, vocab), as the model gave them. num_top: how many rivals each row lists, the token itself among them
    where it is that likely.
    """
    normalizer = logits.logsumexp(1)
    chosen = logits.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0] - normalizer
    top = logits.topk(min(max(num_top), logits.shape[1]))
    top_values = (top.values - normalizer[:, None]).tolist()
    top_ids = top.indices.tolist()
    return [
        TokenLogprob(token_id, logprob, tuple(zip(ids[:k], values[:k], strict=True)))
        for token_id, logprob, ids, values, k in zip(
            token_ids, chosen.tolist(), top_ids, top_values, num_top, strict=True
        )
    ]
