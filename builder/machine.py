"""What this machine can do. Importing this imports no torch, so that serving may ask too."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import DType

CPU_INFO: Final = Path("/proc/cpuinfo")
LEAST_FP8_ARCHITECTURE: Final = 89
"""sm_89 is the first with E4M3 units."""
_CUDA_DRIVER: Final = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/proc/driver/nvidia"), Path("/dev/dxg"))
"""Any of these is there where a driver is; the last is Windows' subsystem for Linux."""
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
"""CUDA's own variable: the GPUs that a process may see."""
_BFLOAT16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})


@cache
def cpu_flags() -> frozenset[str]:
    """Flags of the first processor, as /proc/cpuinfo names them; empty where there is no such file."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


@cache
def cuda_architectures() -> tuple[str, ...]:
    """Architecture of each CUDA device, such as sm_90, by the driver's own word; empty where there is none."""
    if not any(path.exists() for path in _CUDA_DRIVER):
        return ()
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if done.returncode != 0:
        return ()
    return tuple("sm_" + line.strip().replace(".", "") for line in done.stdout.splitlines() if line.strip())


def gpu_obstacle() -> str | None:
    """Why torch cannot compute on the GPUs that the driver knows of, and what to do; None where it can. Imports torch."""
    import torch

    if torch.cuda.is_available():
        return None
    if _is_hidden():
        return f"{_VISIBLE} hides it; unset that"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install one that is built with it"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        words = "it sees none"
    except (RuntimeError, AssertionError) as error:
        words = str(error).partition(". ")[0]
    return (
        f"torch {torch.__version__} for CUDA {torch.version.cuda} cannot use it ({words}); update NVIDIA's driver, or install "
        "a torch for an older CUDA"
    )


def takes_gpu(required: str) -> bool:
    """Whether torch is to compute on a GPU here, for an engine with such a `Requires.device`.

    torch is imported only where the driver knows a GPU. A torch without CUDA, or one from which GPUs are hidden, computes on
    the CPU what may be computed there.

    Raises:
        ResourceError: there is a GPU that torch ought to use, and cannot.
    """
    if required == "cpu" or not cuda_architectures():
        return False
    obstacle = gpu_obstacle()
    if obstacle is None:
        return True
    may_use_cpu = required == "any"
    if may_use_cpu and not _ought_to_use_gpu():
        return False
    other = f"; or hide the GPU, by {_VISIBLE}=-1, to compute on the CPU" if may_use_cpu else ""
    raise ResourceError(f"the GPU here ({cuda_architectures()[0]}) is not to be used: {obstacle}{other}")


def _ought_to_use_gpu() -> bool:
    import torch

    return torch.version.cuda is not None and not _is_hidden()


def _is_hidden() -> bool:
    return os.environ.get(_VISIBLE) in ("", "-1")


def multiplies_fp8() -> bool:
    """Whether a GPU of this machine has units for it."""
    return any(int(one.removeprefix("sm_")) >= LEAST_FP8_ARCHITECTURE for one in cuda_architectures())


def default_dtype() -> DType:
    """bfloat16 where what will run an engine here multiplies it natively, else float32. Imports torch."""
    return DType.BFLOAT16 if cpu_flags() & _BFLOAT16_FLAGS or _torch_has_cuda() else DType.FLOAT32


def _torch_has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
