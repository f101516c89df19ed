"""LogitRules: everything a request may ask of its logits before temperature and truncation."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows

import numpy as np

from trierarch.python_backend.executors.sampling.logit_edits import (
    Bans,
    Bias,
    LogitEdits,
    Masks,
    Penalties,
    bias_arrays,
)
from trierarch.python_backend.executors.sampling.token_history import Floats, Ids, TokenHistory
from trierarch.python_backend.sequence import Context, Continuation


class LogitRules:
    """Masks, bias, penalties and bans, in the order that SamplingParams states.

    What is kept for a sequence can always be rebuilt from it, so `forget` may come at any time.
    """

    def __init__(self, end_ids: tuple[int, ...]) -> None:
        self._end_ids = end_ids
        self._histories: dict[int, TokenHistory] = {}  # sequence_id -> its tokens, where penalties need them
        self._biases: dict[int, tuple[Ids, Floats]] = {}  # sequence_id -> its bias, where it has one

    def concern(self, sequence: Context) -> bool:
        """Whether any rule may change the next logits of `sequence`."""
        sampling = sequence.request.sampling
        return (
            sequence.allowed is not None
            or bool(sampling.logit_bias)
            or bool(sampling.bad_words)
            or sequence.num_output_tokens < sampling.min_tokens
            or sampling.has_penalties
        )

    def edits(self, sequences: Rows[Context]) -> LogitEdits:
        """What changes in a batch's logits, row i for sequences[i]."""
        guided = [(row, sequence.allowed) for row, sequence in enumerate(sequences) if sequence.allowed is not None]
        biased = [row for row, sequence in enumerate(sequences) if sequence.request.sampling.logit_bias]
        penalized = [row for row, sequence in enumerate(sequences) if sequence.request.sampling.has_penalties]
        banned = [(row, token) for row, sequence in enumerate(sequences) for token in self.banned(sequence)]
        return LogitEdits(
            masks=Masks.build([row for row, _ in guided], [allowed for _, allowed in guided]) if guided else None,
            bias=Bias.build(biased, [self._bias(sequences[row]) for row in biased]) if biased else None,
            penalties=Penalties.build(
                penalized,
                [sequences[row].request.sampling for row in penalized],
                [self._history(sequences[row]) for row in penalized],
            )
            if penalized
            else None,
            bans=Bans(*np.array(banned, dtype=np.int64).T) if banned else None,
        )

    def banned(self, sequence: Context) -> set[int]:
        """Tokens that `sequence` may not draw next: bad words' last ones, and until min_tokens those that end it."""
        sampling = sequence.request.sampling
        tokens = completions(sampling.bad_words, sequence.token_ids) if sampling.bad_words else set()
        if sequence.num_output_tokens < sampling.min_tokens:
            tokens.update(self._end_ids if sampling.end_ids is None else sampling.end_ids)
            if sampling.stop_words:
                tokens |= completions(sampling.stop_words, sequence.output_token_ids)
        return tokens

    def forget(self, sequence_ids: Iterable[int]) -> None:
        """Drop what is kept for sequences that ended or were preempted."""
        for sequence_id in sequence_ids:
            self._histories.pop(sequence_id, None)
            self._biases.pop(sequence_id, None)

    def _history(self, sequence: Context) -> TokenHistory:
        known = sequence.sequence if isinstance(sequence, Continuation) else sequence
        history = self._histories.get(known.sequence_id)
        if history is None:
            history = self._histories[known.sequence_id] = TokenHistory(known)
        history.update(known)
        if known.token_ids is not sequence.token_ids:  # drafts may be taken back, so they are counted in a copy
            history = history.copy()
            history.update(sequence)
        return history

    def _bias(self, sequence: Context) -> tuple[Ids, Floats]:
        bias = self._biases.get(sequence.sequence_id)
        if bias is None:
            bias = self._biases[sequence.sequence_id] = bias_arrays(sequence.request.sampling.logit_bias)
        return bias


def completions(words: Iterable[tuple[int, ...]], token_ids: list[int]) -> set[int]:
    """The last tokens of those `words` whose other tokens are just what `token_ids` ends with."""
    return {word[-1] for word in words if len(word) == 1 or tuple(token_ids[1 - len(word) :]) == word[:-1]}
