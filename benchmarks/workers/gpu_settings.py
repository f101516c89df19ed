"""What benchmark `gpu` agrees on with its workers, beside the protocol. It needs the standard library alone."""

from __future__ import annotations

from typing import Final

TRACE_VARIABLE: Final = "TRIERARCH_BENCHMARK_TRACE"
"""Where a worker that profiles writes its trace, a `.json.gz`."""
FP8_VARIABLE: Final = "TRIERARCH_BENCHMARK_FP8"
"""Set for fp8 weights, keys and values."""
LENGTH_VARIABLE: Final = "TRIERARCH_BENCHMARK_GPU_MAX_SEQ_LEN"
FIRST_STEP: Final = 8
"""Decode steps before it are not profiled: kernels are still chosen, and graphs captured."""
NUM_STEPS: Final = 16
"""That are profiled."""
