"""What the machine can give: bytes read a second by all threads, multiply-adds a second. Prints one line of JSON.

python -m trierarch.benchmarks.roofline [--bandwidth-only]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import torch

READ_BYTES: Final = 1 << 30
"""Far beyond any cache."""
NUM_READS: Final = 12
GEMM_SIZES: Final = (256, 512, 1024, 2048)
"""The largest is what is asked for; a slow type never gets there."""
NUM_GEMMS: Final = 12
PATIENCE_SECONDS: Final = 10.0
"""For one limit."""
SLOW_SECONDS: Final = 0.05
"""Of one product: eight times the work is not tried then. A processor without bfloat16 takes a minute for the largest."""


def read_bandwidth() -> float:
    """GB/s of reading READ_BYTES with all threads, the best of several: a limit is what was seen possible."""
    source = torch.ones(READ_BYTES // 4, dtype=torch.float32)
    return READ_BYTES / _best_seconds(lambda: torch.sum(source), NUM_READS) / 1e9


def gemm_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a square product, the best of several; a large one, unless that takes too long."""
    rate = 0.0
    for size in GEMM_SIZES:
        left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
        seconds = _best_seconds(partial(torch.mm, left, right), NUM_GEMMS)
        rate = 2 * size**3 / seconds / 1e9
        if seconds > SLOW_SECONDS:
            break
    return rate


def _best_seconds(action: Callable[[], object], count: int) -> float:
    """Of `count` runs behind a first one, or of as many as fit PATIENCE_SECONDS."""
    deadline = time.perf_counter() + PATIENCE_SECONDS
    best = float("inf")
    for _ in range(count + 1):
        started = time.perf_counter()
        action()
        ended = time.perf_counter()
        best = min(best, ended - started)
        if ended > deadline:
            break
    return best


def main() -> None:
    """Measure and print."""
    result = {"read_gb_per_s": read_bandwidth()}
    if "--bandwidth-only" not in sys.argv[1:]:
        result["bf16_gflop_per_s"] = gemm_rate(torch.bfloat16)
        result["f32_gflop_per_s"] = gemm_rate(torch.float32)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
