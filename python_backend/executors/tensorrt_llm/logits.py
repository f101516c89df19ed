"""What the library is asked of logits, and the log-probs that are worked out of them here.

Its own log-probs are less than ours: of a prompt it tells the likeliest tokens and not the prompt's own, TRTLLMSampler tells
the drawn token alone, and a release tells other ones as soon as logits are asked for too. So wherever an engine gathers logits,
log-probs are of these, and so they always are of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from trierarch.python_backend.errors import ExecutorFailed
from trierarch.python_backend.executors.sampling.logprobs import token_logprobs
from trierarch.python_backend.request import Request, SamplingParams, TokenLogprob

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LogitsAsked:
    """Which logits a sequence needs of the library."""

    of_prompt: bool
    of_output: bool

    @classmethod
    def of(cls, sampling: SamplingParams, index: int, gathers: bool) -> Self:
        """Of sequence `index` of a request; `gathers`: whether the engine keeps what tokens are drawn from."""
        return cls(
            of_prompt=index == 0 and sampling.tells_prompt,
            of_output=sampling.return_generation_logits or (gathers and sampling.logprobs is not None),
        )


@dataclass(frozen=True, slots=True)
class PromptTold:
    """As the first delta has it."""

    logprobs: tuple[TokenLogprob | None, ...] | None
    logits: tuple[NDArray[np.float32], ...] | None


def read_prompt(request: Request, logits: Any, vocab_size: int) -> PromptTold:
    """What a request is told of its prompt. It takes a while for a long one.

    logits: a tensor (prompt tokens, padded vocabulary).

    Raises:
        ExecutorFailed: there are not as many rows as tokens.
    """
    tokens, sampling = request.prompt_token_ids, request.sampling
    rows = _rows(logits, vocab_size)
    if len(rows) != len(tokens):
        raise ExecutorFailed(f"TensorRT-LLM returned the logits of {len(rows)} of the prompt's {len(tokens)} tokens")
    logprobs = None
    if (count := sampling.prompt_logprobs) is not None:
        logprobs = (None, *token_logprobs(rows[:-1], tokens[1:], [count] * (len(tokens) - 1)))
    return PromptTold(logprobs, tuple(rows) if sampling.return_context_logits else None)


def read_output(logits: Any, num_tokens: int, num_shown: int, vocab_size: int) -> NDArray[np.float32]:
    """What the shown tokens of a step were drawn from: (num_shown, vocab_size).

    logits: a tensor (n, padded vocabulary), or None. num_tokens: that the library shows of this step; of an end token that it
    hides there is a row too.

    Raises:
        ExecutorFailed: there are not as many rows as tokens.
    """
    if logits is None and num_tokens == 0:
        return np.empty((0, vocab_size), np.float32)
    rows = np.empty((0, vocab_size), np.float32) if logits is None else _rows(logits, vocab_size)
    if not num_tokens <= len(rows) <= num_tokens + 1:
        raise ExecutorFailed(f"TensorRT-LLM returned {len(rows)} rows of logits for {num_tokens} tokens")
    return rows[:num_shown]


def check_likeliest(rows: NDArray[np.float32], token_ids: Sequence[int]) -> None:
    """Of tokens that can only have been the likeliest: some releases, when they stream, are known to tell another step's.

    Raises:
        ExecutorFailed: one is not.
    """
    for row, token in zip(rows, token_ids, strict=True):
        if row[token] < row.max():
            raise ExecutorFailed(
                f"TensorRT-LLM returned logits that token {token}, which it drew, is not the likeliest of"
            )


def output_logprobs(rows: NDArray[np.float32], token_ids: Sequence[int], count: int) -> tuple[TokenLogprob, ...]:
    """Of drawn tokens, with the `count` likeliest; rows (n, vocab_size)."""
    return tuple(token_logprobs(rows, token_ids, [count] * len(token_ids)))


def _rows(logits: Any, vocab_size: int) -> NDArray[np.float32]:
    """A tensor of any device and floating type, (n, padded vocabulary), as an array of its own."""
    rows: NDArray[np.float32] = logits.detach().cpu().float().numpy()
    if rows.ndim != 2 or rows.shape[1] < vocab_size:
        raise ExecutorFailed(f"TensorRT-LLM returned logits of shape {rows.shape} for {vocab_size} tokens")
    return rows[:, :vocab_size].copy()
