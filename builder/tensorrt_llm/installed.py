"""Whether an engine for TensorRT-LLM may be loaded by what is installed, decided before anything is. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trierarch.builder import machine
from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import EngineManifest, Flow, TensorRTLLM
from trierarch.builder.tensorrt_llm.releases import installed_version, minor, version_of

LEAST_ARCHITECTURE: Final[Mapping[str, int]] = {"FP8": 89, "NVFP4": 100}
"""Quantisation -> the first GPU architecture that multiplies it."""

_TENSORRT: Final = ("tensorrt", "tensorrt_cu13", "tensorrt_cu12")


@dataclass(frozen=True, slots=True)
class Installed:
    """What is here to load an engine with; None is not installed, and no architecture is no GPU."""

    tensorrt_llm: str | None
    tensorrt: str | None = None
    cuda: str | None = None
    gpu_architectures: tuple[str, ...] = ()


def find_installed() -> Installed:
    """What this machine has. Imports torch where TensorRT-LLM is installed, for it knows its CUDA."""
    tensorrt_llm = installed_version()
    cuda = None
    if tensorrt_llm is not None:
        import torch

        cuda = torch.version.cuda
    return Installed(tensorrt_llm, version_of(*_TENSORRT), cuda, machine.cuda_architectures())


def check_installed(manifest: EngineManifest, installed: Installed) -> None:
    """Whether `installed` may load an engine for TensorRT-LLM.

    A TensorRT engine runs with the TensorRT-LLM, the TensorRT and the architecture that compiled it; a Hugging Face
    checkpoint needs the release whose arguments it was written with.

    Raises:
        EngineError: it may not; the message says what to build again.
    """
    record = manifest.tensorrt_llm
    assert record is not None, "only asked of engines for TensorRT-LLM"
    name = f"engine {manifest.name!r}"
    if installed.tensorrt_llm is None:
        raise EngineError(f"{name} is for TensorRT-LLM {record.version}, which is not installed here; install it")
    if minor(installed.tensorrt_llm) != record.version:
        raise EngineError(
            f"{name} was built for TensorRT-LLM {record.version}, and {installed.tensorrt_llm} is installed; build it again "
            f"with: trierarch build --target tensorrt_llm --tensorrt-llm-version {minor(installed.tensorrt_llm)}"
        )
    if record.flow is Flow.ENGINE:
        _check_compiled(name, record, installed)
    _check_gpus(name, record, installed)


def architecture_number(architecture: str) -> int:
    """89 of sm_89."""
    return int(architecture.removeprefix("sm_"))


def _check_compiled(name: str, record: TensorRTLLM, installed: Installed) -> None:
    compiled = record.compiled_by
    remedy = "compile it here with: trierarch compile ENGINE"
    if compiled is None:
        raise EngineError(f"{name} is a checkpoint that no TensorRT engine was compiled from yet; {remedy}")
    for what, then, now in (
        ("TensorRT-LLM", compiled.tensorrt_llm, installed.tensorrt_llm),
        ("TensorRT", compiled.tensorrt, installed.tensorrt),
        ("CUDA", compiled.cuda.partition(".")[0], (installed.cuda or "").partition(".")[0]),
    ):
        if then != now:
            raise EngineError(f"{name} was compiled by {what} {then}, and {now or 'none'} is installed; {remedy}")
    if any(one != compiled.gpu_architecture for one in _needed(record, installed)):
        here = ", ".join(installed.gpu_architectures) or "no CUDA device"
        raise EngineError(f"{name} was compiled for {compiled.gpu_architecture}, and here is {here}; {remedy}")


def _check_gpus(name: str, record: TensorRTLLM, installed: Installed) -> None:
    count = record.tensor_parallel_size * record.pipeline_parallel_size
    if len(installed.gpu_architectures) < count:
        raise EngineError(
            f"{name} is split over {count} GPUs, and here are {len(installed.gpu_architectures)}; build it again with "
            "another --tensor-parallel-size or --pipeline-parallel-size"
        )
    for algo in (record.quant_algo, record.kv_cache_quant_algo):
        least = LEAST_ARCHITECTURE.get(algo or "")
        weak = [one for one in _needed(record, installed) if least is not None and architecture_number(one) < least]
        if weak:
            raise EngineError(
                f"{name} is {algo}, which needs sm_{least} or later, and here is {weak[0]}; build it again with another "
                "--quantization or --kv-cache-dtype"
            )


def _needed(record: TensorRTLLM, installed: Installed) -> tuple[str, ...]:
    """The GPUs that would run it: TensorRT-LLM takes the first ones."""
    return installed.gpu_architectures[: record.tensor_parallel_size * record.pipeline_parallel_size]
