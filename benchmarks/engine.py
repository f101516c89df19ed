"""The engine that benchmarks run: the demo checkpoint with the limits every rival gets too."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trierarch.benchmarks.paths import OUT
from trierarch.benchmarks.report import Goal, Of
from trierarch.benchmarks.subjects.worker import Launch
from trierarch.benchmarks.workers.protocol import KV_CACHE_BYTES, MAX_BATCH_SIZE, MAX_SEQ_LEN
from trierarch.builder.config import BuildConfig
from trierarch.builder.demo import DEMO
from trierarch.builder.manifest import WEIGHTS_NAME, DrafterKind, DType, EngineManifest, Lora, WeightType

EXECUTOR: Final = "executor"
TRITON: Final = "triton"
OURS: Final = (EXECUTOR, TRITON)
"""Our subjects: the embedded executor alone, and behind Triton."""
ANY_INCREASE: Final = 1e9
"""Of perplexity: no build fails of it."""
RSS_ALLOWANCE: Final = 350e6
"""Bytes that a process may hold beyond its weights and its KV cache."""


def build_demo(
    quantization: WeightType | None = None,
    max_batch_size: int = MAX_BATCH_SIZE,
    max_seq_len: int = MAX_SEQ_LEN,
    dtype: DType = DType.BFLOAT16,
    speculation: tuple[DrafterKind, ...] | None = (),
    draft: WeightType | None = None,
    lora: Lora | None = None,
    output: Path | None = None,
) -> tuple[Path, EngineManifest]:
    """Build it afresh, since it must be of the code that is measured.

    What quantization costs is measured, and whatever it is the engine is kept: the report has a goal for it. Nobody
    guesses ahead unless `speculation` says who (None: whoever a build chooses), or a `draft` is named, an engine of the same
    checkpoint with such weights, which then guesses alone. lora: None takes no adapters. output: None is named for the rest.

    Raises:
        ResourceError: the demo checkpoint is not here and cannot be downloaded.
    """
    # These import torch: over a second.
    from trierarch.builder.build import build
    from trierarch.python_backend.executors.torch.teacher_forcing import teacher_forced_logits

    kinds = [*([] if quantization is None else [quantization]), *([] if draft is None else ["draft", draft])]
    output = output or OUT / "-".join(["engine", *kinds])
    config = BuildConfig(
        model=DEMO,
        output=output,
        dtype=dtype,
        quantization=quantization,
        max_batch_size=max_batch_size,
        max_seq_len=max_seq_len,
        kv_cache_bytes=KV_CACHE_BYTES,
        speculation=speculation if draft is None else (DrafterKind.DRAFT_MODEL,),
        draft=draft,
        max_perplexity_increase=ANY_INCREASE,
        max_adapters=0 if lora is None else lora.max_adapters,
        max_lora_rank=(lora or Lora()).max_rank,
        adapter_host_bytes=(lora or Lora()).host_bytes,
        overwrite=True,
    )
    return output, build(config, measure=teacher_forced_logits)


def launches(engine: Path, suffix: str = "") -> list[Launch]:
    """How our subjects are started; `suffix` goes to their names."""
    return [_launch(f"{name}{suffix}", name, engine) for name in OURS]


def server(engine: Path) -> Launch:
    """Our executor behind Triton."""
    return _launch(TRITON, TRITON, engine)


def speculating(engine: Path, name: str) -> Launch:
    """Our executor with its policy of speculation in the benchmark's hand."""
    return _launch(name, "speculating", engine)


def adapting(engine: Path, name: str) -> Launch:
    """Our executor with adapters beside its engine."""
    return _launch(name, "adapting", engine)


def step_probe(engine: Path) -> Launch:
    """Our executor with the parts of its steps timed: slower by a hair, so it gives no other figure."""
    return _launch("step_probe", "step_probe", engine)


def _launch(name: str, worker: str, engine: Path) -> Launch:
    return Launch(name=name, python=Path(sys.executable), module=f"trierarch.benchmarks.workers.{worker}", model=engine)


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

    @property
    def rss_goal(self) -> Goal:
        """On the MB that a process may hold."""
        return Goal(Of.VALUE, round((self.weights + KV_CACHE_BYTES + RSS_ALLOWANCE) / 1e6))
