"""Accuracy: what quantization cost, from the logits of both models over one text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import torch

from trierarch.builder.evaluation_text import EvaluationText
from trierarch.builder.manifest import Accuracy
from trierarch.builder.progress import Progress

_MAX_LOG: Final = 700.0
"""exp of a little more overflows."""


def measure_accuracy(
    text: EvaluationText, reference: Iterable[torch.Tensor], quantized: Iterable[torch.Tensor], progress: Progress
) -> Accuracy:
    """Compare what two models predict for `text`; both as an `Evaluator` yields them. Neither is held as a whole.

    A model whose logits are not finite has an infinite perplexity.
    """
    targets = text.targets
    tally = _Tally()
    progress.stage("accuracy", len(targets), "tokens")
    for expected, found in zip(reference, quantized, strict=True):
        tally.add(expected, found, targets[tally.num_tokens : tally.num_tokens + len(expected)])
        progress.advance(len(expected))
    assert tally.num_tokens == len(targets), f"logits of {tally.num_tokens} tokens for {len(targets)}"
    return tally.accuracy(text.name)


class _Tally:
    """Sums over the tokens so far, in float64."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._reference_loss = self._loss = self._divergence = 0.0
        self._num_agreed = 0

    def add(self, reference: torch.Tensor, quantized: torch.Tensor, targets: torch.Tensor) -> None:
        """reference, quantized: (n, vocab); targets: (n), the tokens that came."""
        assert reference.shape == quantized.shape
        assert len(reference) == len(targets)
        expected = torch.log_softmax(reference.double(), dim=1)
        found = torch.log_softmax(quantized.double(), dim=1)
        columns = targets.to(expected.device)[:, None]
        self.num_tokens += len(targets)
        self._reference_loss -= expected.gather(1, columns).sum().item()
        self._loss -= found.gather(1, columns).sum().item()
        self._num_agreed += int((expected.argmax(1) == found.argmax(1)).sum())
        divergence = (expected.exp() * (expected - found)).sum(1)
        self._divergence += divergence.clamp(min=0).sum().item()  # rounding can leave a hair below zero

    def accuracy(self, text: str) -> Accuracy:
        """Rounded: further digits differ between machines that sum in another order."""
        divergence = self._divergence / self.num_tokens
        return Accuracy(
            text=text,
            num_tokens=self.num_tokens,
            perplexity=_rounded(_perplexity(self._loss / self.num_tokens)),
            reference_perplexity=_rounded(_perplexity(self._reference_loss / self.num_tokens)),
            greedy_agreement=_rounded(self._num_agreed / self.num_tokens),
            mean_kl=_rounded(divergence) if math.isfinite(divergence) else math.inf,
        )


def _perplexity(loss: float) -> float:
    """Of a mean loss in nats; infinite where that is NaN or too large."""
    return math.exp(loss) if loss <= _MAX_LOG else math.inf


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
