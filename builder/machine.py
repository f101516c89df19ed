"""What this machine can do. Importing this imports no torch, so that serving may ask too."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Final

from trierarch.builder.manifest import DType

CPU_INFO: Final = Path("/proc/cpuinfo")
LEAST_FP8_ARCHITECTURE: Final = 89
"""sm_89 is the first with E4M3 units."""
_CUDA_DRIVER: Final = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/proc/driver/nvidia"), Path("/dev/dxg"))
"""Any of these is there where a driver is; the last is Windows' subsystem for Linux."""
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


def multiplies_fp8() -> bool:
    """Whether a GPU of this machine has units for it."""
    return any(int(one.removeprefix("sm_")) >= LEAST_FP8_ARCHITECTURE for one in cuda_architectures())


def default_dtype() -> DType:
    """bfloat16 where what will run an engine here multiplies it natively, else float32. Imports torch."""
    return DType.BFLOAT16 if cpu_flags() & _BFLOAT16_FLAGS or _torch_has_cuda() else DType.FLOAT32


def _torch_has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
