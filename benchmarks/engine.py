"""The engine that benchmarks run: the demo checkpoint with the limits every rival gets too."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trierarch.benchmarks.paths import OUT
from trierarch.benchmarks.subjects.worker import Launch
from trierarch.benchmarks.workers.protocol import KV_CACHE_BYTES, MAX_BATCH_SIZE, MAX_SEQ_LEN
from trierarch.builder.config import BuildConfig
from trierarch.builder.demo import DEMO
from trierarch.builder.manifest import WEIGHTS_NAME, DType, EngineManifest

EXECUTOR: Final = "executor"
TRITON: Final = "triton"
OURS: Final = (EXECUTOR, TRITON)
"""Our subjects: the embedded executor alone, and behind Triton."""


def build_demo() -> tuple[Path, EngineManifest]:
    """Build it afresh, since it must be of the code that is measured.

    Raises:
        ResourceError: the demo checkpoint is not here and cannot be downloaded.
    """
    from trierarch.builder.build import build  # imports torch: over a second

    output = OUT / "engine"
    config = BuildConfig(
        model=DEMO,
        output=output,
        dtype=DType.BFLOAT16,
        max_batch_size=MAX_BATCH_SIZE,
        max_seq_len=MAX_SEQ_LEN,
        kv_cache_bytes=KV_CACHE_BYTES,
        overwrite=True,
    )
    return output, build(config)


def launches(engine: Path) -> list[Launch]:
    """How our subjects are started."""
    workers = "trierarch.benchmarks.workers"
    return [Launch(name=name, python=Path(sys.executable), module=f"{workers}.{name}", model=engine) for name in OURS]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What an engine's weights ask of memory, in bytes."""

    weights: int
    streamed: int
    """That one decode step reads at batch 1. An untied embedding gives but a row."""

    @classmethod
    def of(cls, manifest: EngineManifest) -> Footprint:
        """Of a built engine."""
        architecture, weights = manifest.architecture, manifest.files[WEIGHTS_NAME].num_bytes
        embedding = architecture.vocab_size * architecture.hidden_size * manifest.dtype.num_bytes
        return cls(weights, weights - (0 if architecture.tie_embeddings else embedding))
