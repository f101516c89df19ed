"""Sampler: logits → the next token of every sequence in the batch, whatever kind of array the logits lie in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

from trierarch.python_backend.errors import ExecutorFailed, InvalidRequest, ServingError
from trierarch.python_backend.executors.sampling.logit_rules import LogitRules
from trierarch.python_backend.executors.sampling.token_history import Floats
from trierarch.python_backend.executors.sampling.uniforms import Uniforms
from trierarch.python_backend.request import SamplingParams, TokenLogprob
from trierarch.python_backend.scheduling.plan import SequenceOutput
from trierarch.python_backend.sequence import Context

A = TypeVar("A", bound=Any)
"""Logits: (n, vocab) float32."""

QUANTA: Final = 2.0**60
"""Weights are cut to integers of this part of 1, so that their sums are exact: the same on every device, in every batch.
Weights below 2**-60 become 0. The total of a row must stay below 8."""
_LEAST_TEMPERATURE: Final = 2.0**-126
_MOST_TEMPERATURE: Final = 2.0**127


class Sampler(ABC, Generic[A]):
    """Draws one token a row, each row by its own SamplingParams."""

    def __init__(self, end_ids: tuple[int, ...], uniforms: Uniforms | None = None) -> None:
        """`end_ids` are the engine's own, for requests that name none. `uniforms` None has a secret of its own."""
        self._rules = LogitRules(end_ids)
        self._uniforms = uniforms or Uniforms()

    def sample(self, logits: A, sequences: Rows[Context]) -> list[SequenceOutput]:
        """The next token of each sequence, with log-probs where asked; `logits` are left as they are.

        logits: (n, vocab) float32, row i for sequences[i]. A row that cannot be drawn from (the model gave NaN or
        infinity, or the request masks every token) yields an output with an `error` and no token; the others are
        untouched by it.
        """
        return self._with_logprobs(logits, sequences, self._sample(logits, sequences)) if sequences else []

    def _sample(self, logits: A, sequences: Rows[Context]) -> list[SequenceOutput]:
        """`sample` without log-probs."""
        rows = [row for row, sequence in enumerate(sequences) if not self._is_argmax(sequence)]
        chosen = [sequences[row] for row in rows]
        best, is_sound = self._peaks(logits)
        tokens: list[int | None] = list(best)
        if rows:
            uniforms = [self._uniforms.next(one) for one in chosen]
            for row, token in zip(rows, self._draw(take_rows(logits, rows), chosen, uniforms), strict=True):
                tokens[row] = token
        return outputs_of(tokens, is_sound, sequences)

    def prompt_logprobs(self, logits: A, token_ids: list[int], k: int) -> tuple[TokenLogprob, ...]:
        """Log-probs of prompt tokens with the k most likely ones each; logits (m, vocab), row j predicts token j."""
        return tuple(self._logprobs(logits, token_ids, [k] * len(token_ids))) if token_ids else ()

    def rows(self, logits: A) -> tuple[Floats, ...]:
        """Copies of logits (n, vocab), row by row."""
        return tuple(self._copied(logits))

    def forget(self, sequence_ids: Iterable[int]) -> None:
        """Drop what is kept for sequences that ended or were preempted."""
        self._rules.forget(sequence_ids)

    @abstractmethod
    def _peaks(self, logits: A) -> tuple[list[int], list[bool]]:
        """Each row's likeliest token, the lowest id of equals, and whether the row's largest logit is a finite number."""

    @abstractmethod
    def _copied(self, logits: A) -> Floats:
        """Logits (n, vocab) in memory of their own."""

    @abstractmethod
    def _draw(self, logits: A, sequences: Rows[Context], uniforms: Rows[float]) -> list[int | None]:
        """One token a row; None where nothing can be drawn."""

    @abstractmethod
    def _logprobs(self, logits: A, token_ids: Rows[int], num_top: Rows[int]) -> list[TokenLogprob]:
        """One a row, under the model's own distribution.

        logits: (n, vocab), as the model gave them. num_top: how many rivals each row lists, the token itself among
        them where it is that likely.
        """

    @abstractmethod
    def _edited_logprobs(self, logits: A, token_ids: Rows[int], sequences: Rows[Context]) -> list[TokenLogprob]:
        """One a row, of log-probs that the rules edit and nobody scales anew: see SamplingParams.edited_logprobs.

        logits: (n, vocab), as the model gave them. A row lists fewer rivals where the rules leave fewer.
        """

    def _is_argmax(self, sequence: Context) -> bool:
        sampling = sequence.request.sampling
        return sampling.edited_logprobs or (sampling.is_greedy and not self._rules.concern(sequence))

    def _with_logprobs(
        self, logits: A, sequences: Rows[Context], outputs: list[SequenceOutput]
    ) -> list[SequenceOutput]:
        asked = {
            row: sequence.request.sampling.logprobs
            for row, sequence in enumerate(sequences)
            if sequence.request.sampling.logprobs is not None and outputs[row].error is None
        }
        edited = [row for row in asked if sequences[row].request.sampling.edited_logprobs]
        if edited:
            token_ids = [outputs[row].token_ids[0] for row in edited]
            chosen = [sequences[row] for row in edited]
            told = self._edited_logprobs(take_rows(logits, edited), token_ids, chosen)
            for row, logprob in zip(edited, told, strict=True):
                outputs[row] = replace(outputs[row], logprobs=(logprob,))
                del asked[row]
        if asked:
            rows = list(asked)
            token_ids = [outputs[row].token_ids[0] for row in rows]
            num_top = [count or 0 for count in asked.values()]
            for row, logprob in zip(rows, self._logprobs(take_rows(logits, rows), token_ids, num_top), strict=True):
                outputs[row] = replace(outputs[row], logprobs=(logprob,))
        return outputs


def temperature_of(sampling: SamplingParams) -> float:
    """What logits are divided by: a number that float32 can divide by without making a NaN."""
    return 1.0 if sampling.is_greedy else min(max(sampling.temperature, _LEAST_TEMPERATURE), _MOST_TEMPERATURE)


def take_rows(logits: A, rows: list[int]) -> A:
    """Some rows of logits (n, vocab), the very ones where these are all. Rows are ascending and none comes twice."""
    taken: A = logits if len(rows) == len(logits) else logits[rows]
    return taken


def outputs_of(tokens: Rows[int | None], is_sound: Rows[bool], sequences: Rows[Context]) -> list[SequenceOutput]:
    """What was drawn, None where nothing could be; is_sound: as Sampler._peaks."""
    return [
        _failure(sound, sequence) if token is None or not sound else SequenceOutput(token_ids=(token,))
        for token, sound, sequence in zip(tokens, is_sound, sequences, strict=True)
    ]


def _failure(is_sound: bool, sequence: Context) -> SequenceOutput:
    error: ServingError
    if is_sound:
        error = InvalidRequest(
            ("" if sequence.allowed is None else "guide, ") + "logit_bias, bad_words, min_tokens",
            "masking every token",
            "leave at least one token that may be drawn",
        )
    else:
        error = ExecutorFailed("the model's logits for this sequence are not finite")
    return SequenceOutput(error=error)
