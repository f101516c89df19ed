"""Whether the TensorRT-LLM that is installed may run an engine: decided by names, before anything of it is imported.

A compiled engine runs with the TensorRT-LLM and the TensorRT that wrote it, on the GPU architecture that it was compiled
for, and with nothing else: the library finds out while it loads the weights, and says so in words of its own. A
checkpoint of the PyTorch flow runs with every patch of the release whose arguments the record has. And what of an adapter it
would leave out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trierarch.builder.adapter import LAYER_PIECES, AdapterManifest
from trierarch.builder.errors import AdapterError, EngineError
from trierarch.builder.machine import LEAST_FP8_ARCHITECTURE, cuda_architectures
from trierarch.builder.manifest import CompiledBy, Flow, TensorRTLLM
from trierarch.builder.tensorrt_llm.releases import installed_version, minor, version_of

LEAST_ARCHITECTURE: Final[Mapping[str, int]] = {"FP8": LEAST_FP8_ARCHITECTURE, "NVFP4": 100}
"""Quantisation -> the first GPU architecture that multiplies it."""

_REBUILD: Final = "rebuild the engine here with: trierarch build --target tensorrt_llm"
_COMPILE: Final = f"compile its checkpoint here with: trierarch compile, or {_REBUILD}"
_TENSORRT: Final = ("tensorrt", "tensorrt_cu13", "tensorrt_cu12")


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What this machine would run an engine with."""

    tensorrt_llm: str | None
    """None where it is not installed; so with TensorRT."""
    tensorrt: str | None
    gpu_architectures: tuple[str, ...]
    """Of each device, such as sm_90."""


def installed() -> Installed:
    """What is here, by the packages' own records and the driver's word."""
    return Installed(
        tensorrt_llm=installed_version(), tensorrt=version_of(*_TENSORRT), gpu_architectures=cuda_architectures()
    )


def check_compatible(name: str, record: TensorRTLLM, here: Installed) -> None:
    """Refuse an engine, `name`, that `here` could not run.

    Raises:
        EngineError: something is missing or of another version; the message has both, and the command that rebuilds.
    """
    if here.tensorrt_llm is None:
        raise EngineError(
            f"engine {name!r} runs with TensorRT-LLM {record.version}, which is not installed here; serve it in a "
            "container that has it, such as nvcr.io/nvidia/tritonserver's -trtllm-python-py3"
        )
    if minor(here.tensorrt_llm) != record.version:
        raise EngineError(
            f"engine {name!r} was built for TensorRT-LLM {record.version}, and here is {here.tensorrt_llm}; {_REBUILD}"
        )
    if record.flow is Flow.ENGINE and record.compiled_by is None:
        raise EngineError(f"engine {name!r} is a checkpoint that nothing was compiled from yet; {_COMPILE}")
    if record.compiled_by is not None:
        _check_compiled(name, record.compiled_by, here)
    _check_quantization(name, record, here)


def check_servable(manifest: AdapterManifest) -> None:
    """Raise AdapterError for an adapter of which the library would leave a part out, or compute it otherwise."""
    if manifest.is_dora:
        raise AdapterError(
            "it is a DoRA, whose gains TensorRT-LLM works out otherwise; train a LoRA, or serve it with --target torch"
        )
    others = [piece for piece in manifest.pieces if piece not in LAYER_PIECES]
    if others:
        raise AdapterError(
            f"it adapts {' and '.join(others)}, and TensorRT-LLM adapts the layers alone; train it without, or serve it with "
            "--target torch"
        )


def architecture_number(architecture: str) -> int:
    """89 of sm_89."""
    return int(architecture.removeprefix("sm_"))


def _check_compiled(name: str, by: CompiledBy, here: Installed) -> None:
    pairs = (("TensorRT-LLM", by.tensorrt_llm, here.tensorrt_llm), ("TensorRT", by.tensorrt, here.tensorrt))
    for library, wanted, found in pairs:
        if found != wanted:
            raise EngineError(
                f"engine {name!r} was compiled by {library} {wanted}, and here is {found or 'none'}: compiled engines run "
                f"with no other; {_COMPILE}"
            )
    if not here.gpu_architectures:
        raise EngineError(
            f"engine {name!r} was compiled for {by.gpu_architecture}, and here is no CUDA device; serve it where there is one"
        )
    others = sorted(set(here.gpu_architectures) - {by.gpu_architecture})
    if others:
        raise EngineError(
            f"engine {name!r} was compiled for {by.gpu_architecture}, and here is {', '.join(others)}; {_COMPILE}"
        )


def _check_quantization(name: str, record: TensorRTLLM, here: Installed) -> None:
    for algo in (record.quant_algo, record.kv_cache_quant_algo):
        least = LEAST_ARCHITECTURE.get(algo or "", 0)
        weak = [one for one in here.gpu_architectures if architecture_number(one) < least]
        if weak:
            raise EngineError(
                f"engine {name!r} is quantised to {algo}, which needs sm_{least} or later, and here is {weak[0]}; rebuild it "
                "for this GPU with another --quantization or --kv-cache-dtype: trierarch build --target tensorrt_llm"
            )
