"""Workshop: writes what the engines of benchmark `gpu` need, and says how each is started."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch

from trierarch.benchmarks.gpu_engine import step_bytes, write_config, write_engine, write_random_adapters
from trierarch.benchmarks.gpu_limits import file_rate
from trierarch.benchmarks.gpu_parts import Contestant, Sizes
from trierarch.benchmarks.paths import OUT
from trierarch.benchmarks.random_checkpoint import LLAMA_3_1_8B, TINY, RandomCheckpoint
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.subjects.worker import Launch, WorkerSubject
from trierarch.benchmarks.workers.adapting import ADAPTERS
from trierarch.benchmarks.workers.gpu_settings import FP8_VARIABLE, LENGTH_VARIABLE, TRACE_VARIABLE
from trierarch.builder.decoder import read_decoder
from trierarch.builder.manifest import (
    WEIGHTS_NAME,
    Architecture,
    DType,
    EngineManifest,
    KvType,
    Limits,
    Lora,
    WeightType,
)

TRACE: Final = OUT / "gpu-trace.json.gz"
KV_MEMORY_FRACTION: Final = 0.85
"""Of what the weights leave: the rest is for a long prompt's activations."""
MAX_NUM_TOKENS: Final = 8192
"""Of a step: a long prompt is one."""


@dataclass(frozen=True, slots=True)
class RivalEngine:
    """Somebody else's, where it is installed beside us."""

    module: str
    """Of `workers`: it speaks for the package."""
    package: str
    kind: str
    parts: tuple[str, ...]


RIVALS: Final[Mapping[str, RivalEngine]] = {
    "vllm": RivalEngine("gpu_vllm", "vllm", "bf16", ("decode", "prefill")),
    "vllm-fp8": RivalEngine("gpu_vllm", "vllm", "fp8", ("decode", "throughput")),
    "transformers": RivalEngine("gpu_transformers", "transformers", "bf16", ("decode", "prefill")),
    "transformers-continuous": RivalEngine("gpu_continuous", "transformers", "bf16", ("throughput",)),
}


class Workshop:
    """Works in a folder of its own, which its owner removes."""

    def __init__(self, folder: Path, options: Options, sizes: Sizes) -> None:
        """Nothing is written before `ours`."""
        self._folder = folder
        self._options = options
        self._sizes = sizes
        config = TINY if options.is_quick else LLAMA_3_1_8B
        self._checkpoint = RandomCheckpoint(config, options.seed, torch.device(options.device))
        self.notes: list[str] = []
        """Who is left out."""

    @property
    def architecture(self) -> Architecture:
        """Of all engines."""
        return read_decoder(self._checkpoint.config, self._sizes.max_seq_len).architecture

    def ours(self) -> Iterator[Contestant]:
        """Each engine is written as it is asked for, if there is something to ask it.

        Raises:
            ResourceError: there is no room on the disk.
        """
        executor, profiler = "gpu_executor", "gpu_profile"
        fp8_parts, profile_parts = self._asked("cold", "decode", "throughput"), self._asked("gap")
        if fp8_parts or profile_parts:
            folder, manifest = self._write("fp8", WeightType.FP8, KvType.FP8)
            if fp8_parts:
                yield self._contestant("executor-fp8", executor, folder, manifest, "fp8", fp8_parts)
            if profile_parts:
                yield self._contestant("profile-fp8", profiler, folder, manifest, "fp8", profile_parts)
        if parts := self._asked("decode", "prefill", "adapters"):
            lora = Lora(max_rank=self._sizes.adapter_rank, max_adapters=self._sizes.num_adapters)
            folder, manifest = self._write("bf16", lora=lora if "adapters" in parts else None)
            names: list[str] = []
            if "adapters" in parts:
                count, rank = self._sizes.num_adapters, self._sizes.adapter_rank
                self._options.say(f"writing {count} adapters of rank {rank}")
                names = write_random_adapters(folder.with_name(ADAPTERS), manifest, count, rank, self._options.seed)
            yield self._contestant("executor-bf16", executor, folder, manifest, "bf16", parts, names)
        if parts := self._asked("decode"):
            folder, manifest = self._write("int4", WeightType.INT4)
            yield self._contestant("executor-int4", executor, folder, manifest, "int4", parts)

    def rivals(self) -> Iterator[Contestant]:
        """Those that are installed, and that there is something to ask of; whoever is not is noted."""
        model = write_config(self._folder / "rivals", self._checkpoint.config)
        for name, rival in RIVALS.items():
            parts = self._asked(*rival.parts)
            if not parts or (self._options.rivals is not None and name not in self._options.rivals):
                continue
            if find_spec(rival.package) is None:
                self.notes.append(f"{name} was not measured: {rival.package} is not installed")
                continue
            environment = {LENGTH_VARIABLE: str(self._sizes.max_seq_len)}
            if rival.kind == "fp8":
                environment[FP8_VARIABLE] = "1"
            subject = self._subject(name, rival.module, model, environment)
            yield Contestant(name=name, subject=subject, kind=rival.kind, parts=parts)

    def _asked(self, *parts: str) -> tuple[str, ...]:
        return tuple(part for part in parts if not self._options.parts or part in self._options.parts)

    def _write(
        self, name: str, weights: WeightType | None = None, kv_dtype: KvType | None = None, lora: Lora | None = None
    ) -> tuple[Path, EngineManifest]:
        self._options.say(f"writing the {name} engine")
        folder = self._folder / name / "engine"
        limits = Limits(
            max_batch_size=self._sizes.max_streams,
            max_seq_len=self._sizes.max_seq_len,
            max_num_tokens=MAX_NUM_TOKENS,
            max_queue_size=2 * self._sizes.max_streams,
        )
        manifest = write_engine(
            folder,
            self._checkpoint,
            DType.BFLOAT16,
            limits,
            quantization=weights,
            kv_dtype=kv_dtype,
            kv_memory_fraction=KV_MEMORY_FRACTION,
            lora=lora,
        )
        if self._options.device != "cpu":
            torch.cuda.empty_cache()  # the engines want it
        return folder, manifest

    def _contestant(
        self,
        name: str,
        module: str,
        engine: Path,
        manifest: EngineManifest,
        kind: str,
        parts: tuple[str, ...],
        adapters: list[str] | None = None,
    ) -> Contestant:
        weights = engine / WEIGHTS_NAME
        return Contestant(
            name=name,
            subject=self._subject(name, module, engine, {TRACE_VARIABLE: str(TRACE)}),
            kind=kind,
            parts=parts,
            step_bytes=step_bytes(manifest),
            file_bytes=weights.stat().st_size,
            file_rate=file_rate(weights) if "cold" in parts else 0.0,
            adapters=tuple(adapters or ()),
        )

    def _subject(self, name: str, module: str, model: Path, environment: Mapping[str, str]) -> WorkerSubject:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self._options.device == "cpu" else {}
        return WorkerSubject(
            Launch(
                name=f"gpu-{name}",
                python=Path(sys.executable),
                module=f"trierarch.benchmarks.workers.{module}",
                model=model,
                environment={**environment, **hidden},
            )
        )
