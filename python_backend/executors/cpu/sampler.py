"""CpuSampler: draws from logits in memory, row by row, so that a row stays in cache."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Final

import numpy as np

from trierarch.python_backend.executors.cpu.logit_edits import edit_logits
from trierarch.python_backend.executors.cpu.truncation import Candidates, candidates, quantize
from trierarch.python_backend.executors.sampling.logprobs import edited_logprob, normalizer, token_logprobs
from trierarch.python_backend.executors.sampling.peaks import peaks
from trierarch.python_backend.executors.sampling.sampler import Sampler, temperature_of
from trierarch.python_backend.executors.sampling.token_history import Floats
from trierarch.python_backend.request import TokenLogprob
from trierarch.python_backend.sequence import Context

_RUN: Final = 256


class CpuSampler(Sampler[Floats]):
    """A Sampler of arrays. It draws what `TorchSampler` draws, but for the last bit of a softmax."""

    def probabilities(self, logits: Floats, sequences: Rows[Context]) -> Floats:
        """The distribution that `sample` draws from: (n, vocab) float32; a row of zeros where nothing can be drawn."""
        weights = self.weights(logits, sequences)
        weights /= np.maximum(weights.sum(1, keepdims=True), np.finfo(np.float32).tiny)
        return weights

    def weights(self, logits: Floats, sequences: Rows[Context]) -> Floats:
        """Probabilities but for a factor a row, (n, vocab) float32 in [0, 1]."""
        weights = np.zeros_like(logits)
        for row, (of_row, sequence) in enumerate(zip(logits, sequences, strict=True)):
            if (kept := self._candidates(of_row, sequence)) is not None:
                weights[row, slice(None) if kept.token_ids is None else kept.token_ids] = kept.weights
        return weights

    def _peaks(self, logits: Floats) -> tuple[list[int], list[bool]]:
        return peaks(logits)

    def _copied(self, logits: Floats) -> Floats:
        return logits.copy()

    def _draw(self, logits: Floats, sequences: Rows[Context], uniforms: Rows[float]) -> list[int | None]:
        tokens: list[int | None] = []
        for row, sequence, uniform in zip(logits, sequences, uniforms, strict=True):
            kept = self._candidates(row, sequence)
            tokens.append(None if kept is None else kept.token(draw(kept.weights, uniform)))
        return tokens

    def _logprobs(self, logits: Floats, token_ids: Rows[int], num_top: Rows[int]) -> list[TokenLogprob]:
        return token_logprobs(logits, token_ids, num_top)

    def _edited_logprobs(self, logits: Floats, token_ids: Rows[int], sequences: Rows[Context]) -> list[TokenLogprob]:
        told = []
        for row, token_id, sequence in zip(logits, token_ids, sequences, strict=True):
            logprobs = row - normalizer(row)
            edit_logits(logprobs[None], self._rules.edits([sequence]))
            told.append(edited_logprob(logprobs, token_id, sequence.request.sampling.logprobs or 0))
        return told

    def _candidates(self, logits: Floats, sequence: Context) -> Candidates | None:
        """What may be drawn after `sequence`; None if nothing. logits: (vocab), left as they are."""
        sampling = sequence.request.sampling
        peak = logits.max()
        if self._rules.concern(sequence) and np.isfinite(peak):
            logits = logits.copy()
            edit_logits(logits[None], self._rules.edits([sequence]))
            peak = logits.max()
        if not np.isfinite(peak):
            return None
        if sampling.is_greedy:
            return Candidates(np.ones(1, dtype=np.float32), logits.argmax(keepdims=True))
        # The peak goes to 0 first, so that the smallest temperature cannot make it infinite.
        scaled = logits - peak
        with np.errstate(over="ignore"):
            scaled /= np.float32(temperature_of(sampling))
        return candidates(scaled, sampling)


def draw(weights: Floats, uniform: float) -> int:
    """A place in proportion to `weights`, by inverting the cumulative sum; never one of weight 0.

    weights: (m) in [0, 1]. uniform: in [0, 1). Without any weight some place comes out all the same.
    """
    quanta = quantize(weights)
    # Sums are exact, so that the runs' own may be summed first and only one run looked into.
    num_runs = len(quanta) // _RUN
    ends = np.append(quanta[: num_runs * _RUN].reshape(num_runs, _RUN).sum(1), quanta[num_runs * _RUN :].sum()).cumsum()
    total = int(ends[-1])
    target = min(int(uniform * total), total - 1)
    run = min(int(np.searchsorted(ends, target, side="right")), num_runs)
    before = int(ends[run - 1]) if run else 0
    held = quanta[run * _RUN : (run + 1) * _RUN].cumsum()
    return min(run * _RUN + int(np.searchsorted(held, target - before, side="right")), len(weights) - 1)
