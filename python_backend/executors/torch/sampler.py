"""TorchSampler: draws from logits on any device, all rows at once.

A device works while the host goes on, unless the host asks for a number: then it waits, and the device after it. So off the
CPU a step asks once, for all that was drawn; log-probs, where they are wanted, take one more.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from typing import Final

import torch

from trierarch.python_backend.executors.sampling.peaks import peaks
from trierarch.python_backend.executors.sampling.sampler import Sampler, outputs_of, temperature_of
from trierarch.python_backend.executors.sampling.token_history import Floats
from trierarch.python_backend.executors.sampling.uniforms import Uniforms
from trierarch.python_backend.executors.torch.device import on_device
from trierarch.python_backend.executors.torch.logit_edits import edit_logits
from trierarch.python_backend.executors.torch.logprobs import edited_logprobs, token_logprobs
from trierarch.python_backend.executors.torch.truncation import quantize, truncate
from trierarch.python_backend.request import TokenLogprob
from trierarch.python_backend.scheduling.plan import SequenceOutput
from trierarch.python_backend.sequence import Context

# Row by row a CPU draws several times faster than from a large batch, whose every pass goes through memory.
_CACHED_LOGITS: Final = 2**18


class TorchSampler(Sampler[torch.Tensor]):
    """A Sampler of tensors."""

    def __init__(
        self,
        vocab_size: int,
        end_ids: tuple[int, ...],
        device: torch.device,
        uniforms: Uniforms | None = None,
        asks_once: bool | None = None,
    ) -> None:
        """See Sampler. asks_once: see the module; None does so off the CPU, where looking first saves work."""
        super().__init__(end_ids, uniforms)
        self._vocab_size = vocab_size
        self._device = device
        self._asks_once = device.type != "cpu" if asks_once is None else asks_once

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
        edit_logits(scaled, self._rules.edits(sequences))
        is_sound &= _is_sound(scaled)
        greedy = self._rows(row for row, sampling in enumerate(samplings) if sampling.is_greedy)
        best = scaled.index_select(0, greedy).argmax(1)
        # The peak goes to 0 first, so that the smallest temperature cannot make it infinite.
        scaled.sub_(scaled.amax(1, keepdim=True))
        scaled.div_(on_device([temperature_of(sampling) for sampling in samplings], scaled.device)[:, None])
        weights = torch.softmax(scaled, 1)
        weights.index_fill_(0, greedy, 0.0)
        weights[greedy, best] = 1.0
        if self._asks_once or not bool(is_sound.all()):
            weights.masked_fill_(~is_sound[:, None], 0.0)
        truncate(weights, samplings, self._asks_once)
        return weights

    def verdicts(self, logits: torch.Tensor, sequences: Rows[Context]) -> torch.Tensor:
        """What `sample` draws, on the device and unheard of there: (3, n) int64, for `told`.

        The first row has token ids: of the vocabulary, also where nothing can be drawn.
        """
        tokens, is_sound = logits.argmax(1), _is_sound(logits).long()
        is_possible = torch.ones_like(is_sound)
        rows = [row for row, sequence in enumerate(sequences) if not self._is_argmax(sequence)]
        if rows:
            at = self._rows(rows)
            chosen = [sequences[row] for row in rows]
            of_chosen = logits if len(rows) == len(logits) else logits.index_select(0, at)
            drawn, possible = self._drawn(of_chosen, chosen, [self._uniforms.next(one) for one in chosen])
            tokens.index_copy_(0, at, drawn)
            is_possible.index_copy_(0, at, possible)
        return torch.stack((tokens, is_sound, is_possible))

    def told(self, verdicts: torch.Tensor, sequences: Rows[Context]) -> list[SequenceOutput]:
        """The output of each of `sequences`, without log-probs. verdicts: of `verdicts`, on the host."""
        tokens, is_sound, is_possible = verdicts.tolist()
        drawn = [token if possible else None for token, possible in zip(tokens, is_possible, strict=True)]
        return outputs_of(drawn, [bool(sound) for sound in is_sound], sequences)

    def _sample(self, logits: torch.Tensor, sequences: Rows[Context]) -> list[SequenceOutput]:
        if not self._asks_once:
            return super()._sample(logits, sequences)
        return self.told(self.verdicts(logits, sequences).cpu(), sequences)

    def _peaks(self, logits: torch.Tensor) -> tuple[list[int], list[bool]]:
        return peaks(logits.numpy())  # in a tenth of torch's time (docs/log.md)

    def _copied(self, logits: torch.Tensor) -> Floats:
        copied: Floats = logits.to("cpu", torch.float32, copy=True).numpy()
        return copied

    def _draw(self, logits: torch.Tensor, sequences: Rows[Context], uniforms: Rows[float]) -> list[int | None]:
        tokens: list[int | None] = []
        size = max(1, _CACHED_LOGITS // self._vocab_size)
        for start in range(0, len(sequences), size):
            part = slice(start, start + size)
            tokens += _possible(*self._drawn(logits[part], sequences[part], uniforms[part]))
        return tokens

    def _rows(self, rows: Iterable[int]) -> torch.Tensor:
        return on_device(torch.tensor([*rows], dtype=torch.int64), self._device)

    def _drawn(
        self, logits: torch.Tensor, sequences: Rows[Context], uniforms: Rows[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A token a row, and whether it can be drawn. (n) int64 each, on the device."""
        weights = self.weights(logits, sequences)
        drawn = draw(weights, on_device(torch.tensor(uniforms, dtype=torch.float64), weights.device))
        return drawn, (weights.amax(1) > 0.0).long()

    def _logprobs(self, logits: torch.Tensor, token_ids: Rows[int], num_top: Rows[int]) -> list[TokenLogprob]:
        return token_logprobs(logits, token_ids, num_top)

    def _edited_logprobs(
        self, logits: torch.Tensor, token_ids: Rows[int], sequences: Rows[Context]
    ) -> list[TokenLogprob]:
        logprobs = logits.float().log_softmax(1)
        edit_logits(logprobs, self._rules.edits(sequences))
        num_top = [sequence.request.sampling.logprobs or 0 for sequence in sequences]
        return edited_logprobs(logprobs, token_ids, num_top)


def draw(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One index a row in proportion to `weights`, by inverting the cumulative sum; never one of weight 0. (n) int64

    weights: (n, m) in [0, 1]. uniforms: (n) float64 in [0, 1). A row without any weight yields an index all the same.
    """
    held = quantize(weights).cumsum(1)
    total = held[:, -1]
    targets = torch.minimum((uniforms * total).to(torch.int64), total - 1)
    return torch.searchsorted(held, targets[:, None], right=True)[:, 0].clamp_(max=weights.shape[1] - 1)


def _possible(drawn: torch.Tensor, is_possible: torch.Tensor) -> list[int | None]:
    pairs = zip(drawn.tolist(), is_possible.tolist(), strict=True)
    return [token if possible else None for token, possible in pairs]


def _is_sound(logits: torch.Tensor) -> torch.Tensor:
    """Rows (n) whose largest logit is a number: not infinite, none NaN beside it, not all masked."""
    return torch.isfinite(logits.amax(1))
