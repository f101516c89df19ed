"""Whether the TensorRT-LLM that is installed may run an engine: decided by names, before anything of it is imported.

A compiled engine runs with the TensorRT-LLM and the TensorRT that wrote it, on the GPU architecture that it was compiled
for, and with nothing else: the library finds out while it loads the weights, and says so in words of its own. A
checkpoint of the PyTorch flow runs with every patch of the release whose arguments the record has.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from trierarch.builder.errors import EngineError
from trierarch.builder.machine import cuda_architectures
from trierarch.builder.manifest import CompiledBy, Flow, TensorRTLLM

_REBUILD: Final = "rebuild the engine here with: trierarch build --target tensorrt_llm"


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
        tensorrt_llm=_version("tensorrt_llm"), tensorrt=_version("tensorrt"), gpu_architectures=cuda_architectures()
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
    if not _is_of_release(here.tensorrt_llm, record.version):
        raise EngineError(
            f"engine {name!r} was built for TensorRT-LLM {record.version}, and here is {here.tensorrt_llm}; {_REBUILD}"
        )
    if record.flow is Flow.ENGINE and record.compiled_by is None:
        raise EngineError(f"engine {name!r} is a checkpoint that nothing was compiled from yet; {_REBUILD}")
    if record.compiled_by is not None:
        _check_compiled(name, record.compiled_by, here)


def _check_compiled(name: str, by: CompiledBy, here: Installed) -> None:
    pairs = (("TensorRT-LLM", by.tensorrt_llm, here.tensorrt_llm), ("TensorRT", by.tensorrt, here.tensorrt))
    for library, wanted, found in pairs:
        if found != wanted:
            raise EngineError(
                f"engine {name!r} was compiled by {library} {wanted}, and here is {found or 'none'}: compiled engines run "
                f"with no other; {_REBUILD}"
            )
    if not here.gpu_architectures:
        raise EngineError(
            f"engine {name!r} was compiled for {by.gpu_architecture}, and here is no CUDA device; serve it where there is one"
        )
    others = sorted(set(here.gpu_architectures) - {by.gpu_architecture})
    if others:
        raise EngineError(
            f"engine {name!r} was compiled for {by.gpu_architecture}, and here is {', '.join(others)}; {_REBUILD}"
        )


def _is_of_release(found: str, release: str) -> bool:
    return found.split(".")[:2] == release.split(".")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
