"""Log-probabilities of given tokens and of their most likely rivals."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import numpy as np

from trierarch.python_backend.executors.sampling.largest import largest
from trierarch.python_backend.executors.sampling.token_history import Floats
from trierarch.python_backend.request import TokenLogprob


def token_logprobs(logits: Floats, token_ids: Rows[int], num_top: Rows[int]) -> list[TokenLogprob]:
    """See Sampler._logprobs."""
    return [_logprob(*each) for each in zip(logits, token_ids, num_top, strict=True)]


def edited_logprob(logprobs: Floats, token_id: int, k: int) -> TokenLogprob:
    """One of Sampler._edited_logprobs; logprobs: (vocab), edited."""
    top = largest(logprobs, min(k, int(np.count_nonzero(np.isfinite(logprobs)))))
    rivals = zip(top.tolist(), logprobs[top].tolist(), strict=True)
    return TokenLogprob(token_id, float(logprobs[token_id]), tuple(rivals))


def normalizer(logits: Floats) -> float:
    """The logarithm of the sum of exponentials of logits (vocab): what they are above log-probs."""
    peak = logits.max()
    with np.errstate(invalid="ignore"):
        return float(peak) + math.log(float(np.exp(logits - peak).sum()))


def _logprob(logits: Floats, token_id: int, k: int) -> TokenLogprob:
    scale = normalizer(logits)
    top = largest(logits, k)
    rivals = zip(top.tolist(), (logits[top] - scale).tolist(), strict=True)
    return TokenLogprob(token_id, float(logits[token_id]) - scale, tuple(rivals))
