"""Log-probabilities of given tokens and of their most likely rivals, under the model's own distribution."""

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


def _logprob(logits: Floats, token_id: int, k: int) -> TokenLogprob:
    peak = logits.max()
    with np.errstate(invalid="ignore"):
        normalizer = float(peak) + math.log(float(np.exp(logits - peak).sum()))
    top = largest(logits, k)
    rivals = zip(top.tolist(), (logits[top] - normalizer).tolist(), strict=True)
    return TokenLogprob(token_id, float(logits[token_id]) - normalizer, tuple(rivals))
