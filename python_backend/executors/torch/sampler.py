"""TorchSampler: draws from logits on any device, all rows at once."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Final

import torch

from trierarch.python_backend.executors.sampling.peaks import peaks
from trierarch.python_backend.executors.sampling.sampler import Sampler, temperature_of
from trierarch.python_backend.executors.sampling.token_history import Floats
from trierarch.python_backend.executors.sampling.uniforms import Uniforms
from trierarch.python_backend.executors.torch.logit_edits import edit_logits
from trierarch.python_backend.executors.torch.logprobs import token_logprobs
from trierarch.python_backend.executors.torch.truncation import quantize, truncate
from trierarch.python_backend.request import TokenLogprob
from trierarch.python_backend.sequence import Context

# Row by row a CPU draws several times faster than from a large batch, whose every pass goes through memory.
_CACHED_LOGITS: Final = 2**18


class TorchSampler(Sampler[torch.Tensor]):
    """A Sampler of tensors."""

    def __init__(
        self, vocab_size: int, end_ids: tuple[int, ...], device: torch.device, uniforms: Uniforms | None = None
    ) -> None:
        """See Sampler."""
        super().__init__(end_ids, uniforms)
        self._vocab_size = vocab_size
        self._device = device

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
        greedy = [row for row, sampling in enumerate(samplings) if sampling.is_greedy]
        best = scaled[greedy].argmax(1)
        # The peak goes to 0 first, so that the smallest temperature cannot make it infinite.
        scaled.sub_(scaled.amax(1, keepdim=True))
        scaled.div_(torch.tensor([temperature_of(sampling) for sampling in samplings], device=scaled.device)[:, None])
        weights = torch.softmax(scaled, 1)
        weights[greedy] = 0.0
        weights[greedy, best] = 1.0
        if not bool(is_sound.all()):
            weights[~is_sound] = 0.0
        truncate(weights, samplings)
        return weights

    def _peaks(self, logits: torch.Tensor) -> tuple[list[int], list[bool]]:
        if logits.device.type == "cpu":
            return peaks(logits.numpy())  # in a tenth of torch's time (docs/log.md)
        return logits.argmax(1).tolist(), _is_sound(logits).tolist()

    def _copied(self, logits: torch.Tensor) -> Floats:
        copied: Floats = logits.to("cpu", torch.float32, copy=True).numpy()
        return copied

    def _draw(self, logits: torch.Tensor, sequences: Rows[Context], uniforms: Rows[float]) -> list[int | None]:
        tokens: list[int | None] = []
        size = max(1, _CACHED_LOGITS // self._vocab_size) if self._device.type == "cpu" else len(sequences)
        for start in range(0, len(sequences), size):
            part = slice(start, start + size)
            weights = self.weights(logits[part], sequences[part])
            drawn = draw(weights, torch.tensor(uniforms[part], dtype=torch.float64, device=weights.device))
            is_possible = weights.amax(1) > 0.0
            tokens += [
                token if possible else None
                for token, possible in zip(drawn.tolist(), is_possible.tolist(), strict=True)
            ]
        return tokens

    def _logprobs(self, logits: torch.Tensor, token_ids: Rows[int], num_top: Rows[int]) -> list[TokenLogprob]:
        return token_logprobs(logits, token_ids, num_top)


def draw(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One index a row in proportion to `weights`, by inverting the cumulative sum; never one of weight 0. (n) int64

    weights: (n, m) in [0, 1]. uniforms: (n) float64 in [0, 1). A row without any weight yields an index all the same.
    """
    held = quantize(weights).cumsum(1)
    total = held[:, -1]
    targets = torch.minimum((uniforms * total).to(torch.int64), total - 1)
    return torch.searchsorted(held, targets[:, None], right=True)[:, 0].clamp_(max=weights.shape[1] - 1)


def _is_sound(logits: torch.Tensor) -> torch.Tensor:
    """Rows (n) whose largest logit is a number: not infinite, none NaN beside it, not all masked."""
    return torch.isfinite(logits.amax(1))
