"""How the stand-in draws: by arithmetic that a reader can do.

    next = (3 * sum(context) + number of context tokens + seed of a sampled request + adapter) mod vocab_size

moved on by one as often as that token is banned, by the bias or as an end token before min_tokens are out; a positive bias
wins over everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any


def draw(prompt: Sequence[int], drawn: Sequence[int], params: Any, shift: int, vocab_size: int) -> int:
    """The next token."""
    context = [*prompt, *drawn]
    seed = 0 if params._greedy_decoding else params.seed or 0
    token = (3 * sum(context) + len(context) + shift + seed) % vocab_size
    bias = [0.0] * vocab_size if params.embedding_bias is None else params.embedding_bias.tolist()
    assert len(bias) == vocab_size
    if max(bias) > 0:
        return bias.index(max(bias))
    while bias[token] < 0 or (token == params.end_id and len(drawn) < (params.min_tokens or 0)):
        token = (token + 1) % vocab_size
    return token


def logprob_entry(token: int, count: int, vocab_size: int) -> dict[int, Any]:
    """The likeliest tokens 0, 1, ... and the drawn one, whose log-prob is -token."""
    others = {other: SimpleNamespace(logprob=-float(other), rank=other + 1) for other in range(min(count, vocab_size))}
    return others | {token: SimpleNamespace(logprob=-float(token), rank=token + 1)}
