"""AccuracyGate: a quantised engine is run beside its unquantised twin, and passes if it is nearly as good."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import torch

from trierarch.builder.accuracy import measure_accuracy
from trierarch.builder.blueprint import Blueprint
from trierarch.builder.errors import ConfigError
from trierarch.builder.evaluation_text import EvaluationText
from trierarch.builder.manifest import Accuracy, DType, EngineManifest, WeightType
from trierarch.builder.progress import Progress


class Evaluator(Protocol):
    """Runs engines over a text. The builder runs none itself: whoever calls it gives one that can."""

    def __call__(self, engine: Path, windows: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        """Logits that predict each window's tokens from the second on, windows in order and each begun afresh.

        Yields (n, vocab) float32, n small enough for memory and decided by `windows` alone.
        """
        ...


@dataclass(frozen=True, slots=True)
class AccuracyGate:
    """What a quantised engine is compared with, on which text, and how much worse it may be."""

    measure: Evaluator
    text: EvaluationText
    reference: Blueprint
    """The same engine, unquantised."""
    max_perplexity_increase: float

    @property
    def num_bytes(self) -> int:
        """Bytes of disk that `check` takes for as long as it lasts."""
        return self.reference.num_bytes

    def check(self, engine: Path, manifest: EngineManifest, progress: Progress) -> EngineManifest:
        """Measure the quantised engine in `engine`; the reference is written beside it and removed again.

        Returns `manifest` with what was measured.

        Raises:
            ConfigError: quantization costs too much, or the model is broken without it.
            EngineError: the engines cannot run here.
            ResourceError: there is no memory for both.
            OSError: the disk is full or cannot be written.
        """
        with TemporaryDirectory(prefix=f"{engine.name}.", suffix=".reference", dir=engine.parent) as directory:
            reference = Path(directory)
            self.reference.write(reference, progress, "reference")
            windows = self.text.windows
            accuracy = measure_accuracy(
                self.text, self.measure(reference, windows), self.measure(engine, windows), progress
            )
        self._judge(accuracy, manifest)
        return manifest.model_copy(update={"accuracy": accuracy})

    def _judge(self, accuracy: Accuracy, manifest: EngineManifest) -> None:
        refuse_without_reference(accuracy, manifest.dtype, "build with --dtype float32")
        what, milder = _quantized(manifest)
        refuse_if_worse(accuracy, self.max_perplexity_increase, f"{what} raise", milder)


def refuse_without_reference(accuracy: Accuracy, dtype: DType, remedy: str) -> None:
    """Refuse what was compared with a model that is broken already.

    Raises:
        ConfigError: the unquantised model has no finite perplexity.
    """
    if not math.isfinite(accuracy.reference_perplexity):
        raise ConfigError(
            f"dtype is {dtype.value!r}: the unquantised model has no finite perplexity on {accuracy.text}, so there is "
            f"nothing to compare with; {remedy}, or skip this with --no-accuracy-check"
        )


def refuse_if_worse(accuracy: Accuracy, limit: float, what: str, milder: str) -> None:
    """Let a quantised model pass that costs no more than `limit`; `what` raises perplexity, and `milder` remedies that.

    Raises:
        ConfigError: it costs more.
    """
    if accuracy.perplexity_increase > limit:
        raise ConfigError(
            f"max_perplexity_increase is {limit:g} ({limit:.2%}): {what} perplexity by "
            f"{accuracy.perplexity_increase:.2%}, from {accuracy.reference_perplexity:.2f} to "
            f"{accuracy.perplexity:.2f} on {accuracy.text}; {milder}allow more with --max-perplexity-increase, "
            "or skip this with --no-accuracy-check"
        )


def _quantized(manifest: EngineManifest) -> tuple[str, str]:
    """What is quantised, and how to have less of it."""
    whats, remedies = [], []
    if manifest.quantization is not None:
        weights = manifest.quantization.weights
        whats.append(f"{weights.value} weights")
        remedies += ["take int8 weights, "] if weights in (WeightType.INT4, WeightType.FP8) else []
    if manifest.kv_cache.dtype.is_quantized:
        whats.append(f"{manifest.kv_cache.dtype.value} keys and values")
        remedies.append("leave --kv-cache-dtype out, ")
    return " with ".join(whats), "".join(remedies)
