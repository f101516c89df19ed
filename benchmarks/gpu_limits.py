"""What a device gives: bytes read a second, multiply-adds a second in bfloat16. Prints one line of JSON.

python -m trierarch.benchmarks.gpu_limits DEVICE [--quick]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch

READ_BYTES: Final = 4 << 30
"""Far beyond any cache."""
GEMM_SIZES: Final = (4096, 8192)
QUICK_BYTES: Final = 1 << 24
QUICK_SIZES: Final = (128,)
NUM_RUNS: Final = 12
_CHUNK_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """The best of several runs: a limit is what was seen possible."""

    name: str
    memory_gb_per_s: float
    """Of reading, or of copying, which reads and writes: whichever is more."""
    bf16_tflop_per_s: float

    @classmethod
    def measure(cls, device: str, is_quick: bool) -> GpuLimits:
        """In a process of its own: no memory of the device stays taken.

        Raises:
            CalledProcessError: torch cannot compute on `device`.
        """
        command = [sys.executable, "-P", "-m", "trierarch.benchmarks.gpu_limits", device]
        done = subprocess.run(
            command + (["--quick"] if is_quick else []), stdout=subprocess.PIPE, text=True, check=True, timeout=300
        )
        return cls(**json.loads(done.stdout))


def memory_rate(device: torch.device, num_bytes: int) -> float:
    """GB/s."""
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    reading = num_bytes / best_seconds(device, lambda: torch.sum(source))
    copying = 2 * num_bytes / best_seconds(device, lambda: target.copy_(source))
    return max(reading, copying) / 1e9


def gemm_rate(device: torch.device, sizes: tuple[int, ...]) -> float:
    """TFLOP/s of the best square product."""
    rate = 0.0
    for size in sizes:
        left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
        rate = max(rate, 2 * size**3 / best_seconds(device, partial(torch.mm, left, right)))
    return rate / 1e12


def file_rate(path: Path) -> float:
    """Bytes a second of reading a file from its first to its last byte, wherever the machine has it."""
    buffer = bytearray(_CHUNK_BYTES)
    num_bytes = 0
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            num_bytes += count
    return num_bytes / (time.perf_counter() - started)


def best_seconds(device: torch.device, action: Callable[[], object]) -> float:
    """Of NUM_RUNS, behind one that does not count; each until the device has done it."""
    action()
    best = float("inf")
    for _ in range(NUM_RUNS):
        _wait(device)
        started = time.perf_counter()
        action()
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure and print."""
    device = torch.device(sys.argv[1])
    is_quick = "--quick" in sys.argv[2:]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    limits = {
        "name": name,
        "memory_gb_per_s": memory_rate(device, QUICK_BYTES if is_quick else READ_BYTES),
        "bf16_tflop_per_s": gemm_rate(device, QUICK_SIZES if is_quick else GEMM_SIZES),
    }
    print(json.dumps(limits))


if __name__ == "__main__":
    main()
