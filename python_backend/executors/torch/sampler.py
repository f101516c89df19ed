"""Sampler: logits → the next token of every sequence in the batch."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np
import torch

from trierarch.python_backend.errors import ExecutorFailed, InvalidRequest, ServingError
from trierarch.python_backend.executors.torch.logit_rules import LogitRules
from trierarch.python_backend.executors.torch.logprobs import token_logprobs
from trierarch.python_backend.executors.torch.truncation import quantize, truncate
from trierarch.python_backend.executors.torch.uniforms import Uniforms
from trierarch.python_backend.request import TokenLogprob
from trierarch.python_backend.scheduling.plan import SequenceOutput
from trierarch.python_backend.sequence import Context

T = TypeVar("T", int, bool)

# Row by row a CPU draws several times faster than from a large batch, whose every pass goes through memory.
_CACHED_LOGITS: Final = 2**18


class Sampler:
    """Draws one token a row, each row by its own SamplingParams, all rows at once."""

    def __init__(self, vocab_size: int, end_ids: tuple[int, ...], device: torch.device) -> None:
        """`end_ids` are the engine's own, for requests that name none."""
        self._vocab_size = vocab_size
        self._device = device
        self._rules = LogitRules(end_ids)
        self._uniforms = Uniforms()

    def sample(self, logits: torch.Tensor, sequences: Rows[Context]) -> list[SequenceOutput]:
        """The next token of each sequence, with log-probs where asked; `logits` are left as they are.

        logits: (n, vocab) float32, row i for sequences[i]. A row that cannot be drawn from (the model gave NaN or
        infinity, or the request masks every token) yields an output with an `error` and no token; the others are
        untouched by it.
        """
        if not sequences:
            return []
        tokens, is_sound = _peaks(logits)
        is_possible = [True] * len(sequences)
        greedy = [row for row, sequence in enumerate(sequences) if self._is_argmax(sequence)]
        for drawn in self._parts(sorted(set(range(len(sequences))).difference(greedy))):
            chosen = [sequences[row] for row in drawn]
            weights = self.weights(take_rows(logits, drawn), chosen)
            uniforms = [self._uniforms.next(sequence) for sequence in chosen]
            _scatter(tokens, drawn, draw(weights, torch.tensor(uniforms, dtype=torch.float64, device=weights.device)))
            _scatter(is_possible, drawn, weights.amax(1) > 0.0)
        outputs = [
            SequenceOutput(token_ids=(token,)) if sound and possible else _failure(sound)
            for token, sound, possible in zip(tokens, is_sound, is_possible, strict=True)
        ]
        return self._with_logprobs(logits, sequences, outputs)

    def probabilities(self, logits: torch.Tensor, sequences: Rows[Context]) -> torch.Tensor:
        """The distribution that `sample` draws from: (n, vocab) float32; a row of zeros where nothing can be drawn."""
        weights = self.weights(logits, sequences)
        return weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)

    def weights(self, logits: torch.Tensor, sequences: Rows[Context]) -> torch.Tensor:
        """Probabilities but for a factor a row, (n, vocab) float32 in [0, 1]: the softmax, cut but not scaled anew.

        A row comes out the same, bit for bit, whatever rows are beside it.
        """
        samplings = [sequence.request.sampling for sequence in sequences]
        scaled = logits.to(torch.float32, copy=True)
        is_sound = _is_sound(scaled)
        self._rules.apply(scaled, sequences)
        is_sound &= _is_sound(scaled)
        greedy = [row for row, sampling in enumerate(samplings) if sampling.is_greedy]
        best = scaled[greedy].argmax(1)
        # The peak goes to 0 first, so that the smallest temperature cannot make it infinite.
        scaled.sub_(scaled.amax(1, keepdim=True))
        tiny = torch.finfo(scaled.dtype).tiny
        temperatures = [1.0 if sampling.is_greedy else max(sampling.temperature, tiny) for sampling in samplings]
        scaled.div_(torch.tensor(temperatures, device=scaled.device)[:, None])
        weights = torch.softmax(scaled, 1)
        weights[greedy] = 0.0
        weights[greedy, best] = 1.0
        if not bool(is_sound.all()):
            weights[~is_sound] = 0.0
        truncate(weights, samplings)
        return weights

    def prompt_logprobs(self, logits: torch.Tensor, token_ids: list[int], k: int) -> tuple[TokenLogprob, ...]:
        """Log-probs of prompt tokens with the k most likely ones each; logits (m, vocab), row j predicts token j."""
        return tuple(token_logprobs(logits, token_ids, [k] * len(token_ids))) if token_ids else ()

    def forget(self, sequence_ids: Iterable[int]) -> None:
        """Drop what is kept for sequences that ended or were preempted."""
        self._rules.forget(sequence_ids)

    def _parts(self, rows: list[int]) -> list[list[int]]:
        """Rows to work on together: all of them, but on a CPU no more than stay in its cache."""
        size = max(1, _CACHED_LOGITS // self._vocab_size) if self._device.type == "cpu" else max(1, len(rows))
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _is_argmax(self, sequence: Context) -> bool:
        return sequence.request.sampling.is_greedy and not self._rules.concern(sequence)

    def _with_logprobs(
        self, logits: torch.Tensor, sequences: Rows[Context], outputs: list[SequenceOutput]
    ) -> list[SequenceOutput]:
        asked = {
            row: sequence.request.sampling.logprobs
            for row, sequence in enumerate(sequences)
            if sequence.request.sampling.logprobs is not None and outputs[row].error is None
        }
        if asked:
            rows = list(asked)
            token_ids = [outputs[row].token_ids[0] for row in rows]
            num_top = [count or 0 for count in asked.values()]
            for row, logprob in zip(rows, token_logprobs(take_rows(logits, rows), token_ids, num_top), strict=True):
                outputs[row] = replace(outputs[row], logprobs=(logprob,))
        return outputs


def draw(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One index a row in proportion to `weights`, by inverting the cumulative sum; never one of weight 0. (n) int64

    weights: (n, m) in [0, 1]. uniforms: (n) float64 in [0, 1). A row without any weight yields an index all the same.
    """
    held = quantize(weights).cumsum(1)
    total = held[:, -1]
    targets = torch.minimum((uniforms * total).to(torch.int64), total - 1)
    return torch.searchsorted(held, targets[:, None], right=True)[:, 0].clamp_(max=weights.shape[1] - 1)


def _peaks(logits: torch.Tensor) -> tuple[list[int], list[bool]]:
    """Each row's likeliest token, the lowest id of equals, and whether the row is sound as `_is_sound` says."""
    if logits.device.type == "cpu":
        # In a tenth of torch's time (docs/log.md). Both take NaN for the largest and the first of equals.
        array = logits.numpy()
        best = array.argmax(1)
        peaks = np.take_along_axis(array, best[:, None], 1)[:, 0]
        return best.tolist(), np.isfinite(peaks).tolist()
    return logits.argmax(1).tolist(), _is_sound(logits).tolist()


def _is_sound(logits: torch.Tensor) -> torch.Tensor:
    """Rows (n) whose largest logit is a number: not infinite, none NaN beside it, not all masked."""
    return torch.isfinite(logits.amax(1))


def take_rows(logits: torch.Tensor, rows: Rows[int]) -> torch.Tensor:
    """Some rows of logits (n, vocab), the very ones where these are all. Rows are ascending and none comes twice."""
    if len(rows) == len(logits):
        return logits
    return logits.index_select(0, torch.tensor(rows, device=logits.device))


def _scatter(into: list[T], rows: list[int], values: torch.Tensor) -> None:
    for row, value in zip(rows, values.tolist(), strict=True):
        into[row] = value


def _failure(is_sound: bool) -> SequenceOutput:
    error: ServingError
    if is_sound:
        error = InvalidRequest(
            "logit_bias, bad_words, min_tokens",
            "masking every token",
            "leave at least one token that may be drawn",
        )
    else:
        error = ExecutorFailed("the model's logits for this sequence are not finite")
    return SequenceOutput(error=error)
