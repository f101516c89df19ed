"""Benchmark `gpu`: a model of Llama-3.1-8B's shape on one GPU, as shares of what the GPU gives and beside rivals.

Weights are random and made on the device, so that nothing is downloaded: rates do not depend on what a model says. Every
engine has the device to itself, one after the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import torch

from trierarch.benchmarks import provenance
from trierarch.benchmarks.gpu_limits import GpuLimits
from trierarch.benchmarks.gpu_parts import PARTS, QUICK, Setting, Sizes
from trierarch.benchmarks.gpu_session import GpuSession
from trierarch.benchmarks.gpu_workshop import RIVALS, Workshop
from trierarch.benchmarks.machine import Machine
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.report import Report
from trierarch.benchmarks.workload import Workload
from trierarch.builder.errors import ConfigError, ResourceError

DISTRIBUTIONS: Final = ("torch", "triton", "flashinfer-python", "transformers", "vllm", "numpy", "safetensors")


def run(options: Options) -> Iterator[Report]:
    """Measure the device, write the engines, run each of them.

    Raises:
        ConfigError: a part or a rival is unknown, or a CPU is to be measured.
        ResourceError: there is no CUDA device, or no room on the disk.
    """
    _check(options)
    sizes = QUICK if options.is_quick else Sizes()
    options.say("measuring what the device gives")
    limits = GpuLimits.measure(options.device, options.is_quick)
    rates = {"memory_gb_per_s": limits.memory_gb_per_s, "bf16_tflop_per_s": limits.bf16_tflop_per_s}
    blank = Report(
        benchmark="gpu",
        is_quick=options.is_quick,
        date=provenance.now(),
        commit=provenance.commit(),
        seed=options.seed,
        machine=Machine.here().to_dict() | {"gpu": limits.name, "limits": rates},
        versions=provenance.versions(DISTRIBUTIONS),
        lengths=asdict(sizes),
        rows=(),
        is_complete=False,
    )
    with tempfile.TemporaryDirectory(prefix="trierarch-gpu-") as folder:
        workshop = Workshop(Path(folder), options, sizes)
        contestants = [*workshop.ours(), *workshop.rivals()]
        setting = Setting(Workload(seed=options.seed), sizes, limits, workshop.architecture)
        session = GpuSession(contestants, setting, options.say)

        def grown(is_complete: bool) -> Report:
            notes = (*workshop.notes, *session.notes)
            return replace(
                blank, is_complete=is_complete, rows=session.rows(), settings=session.settings(), notes=notes
            )

        for _ in session.run():
            yield grown(is_complete=False)
        yield grown(is_complete=True)


def _check(options: Options) -> None:
    if unknown := [part for part in options.parts if part not in PARTS]:
        raise ConfigError(f"--parts names {unknown[0]!r}: gpu has {', '.join(PARTS)}")
    if unknown := [name for name in options.rivals or () if name not in RIVALS]:
        raise ConfigError(f"--rivals names {unknown[0]!r}: gpu has {', '.join(RIVALS)}, or none")
    if options.device == "cpu" and not options.is_quick:
        raise ConfigError(
            "--device is 'cpu': figures of it would mean nothing; try the harness with --device cpu --quick"
        )
    if options.device != "cpu" and not torch.cuda.is_available():
        raise ResourceError(
            "torch finds no CUDA device here: run this on a machine with an NVIDIA GPU and a torch built for CUDA, or "
            "try the harness with --device cpu --quick"
        )
