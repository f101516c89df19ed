"""Machine: what the benchmark ran on."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from trierarch.builder.machine import cpu_flags

CPU_INFO: Final = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Machine:
    """Identity of a machine."""

    cpu: str
    cores: int
    """That this process may use."""
    cpu_flags: tuple[str, ...]
    memory_bytes: int
    kernel: str
    python: str

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        return cls(
            cpu=_cpu_model(),
            cores=len(psutil.Process().cpu_affinity()),
            cpu_flags=tuple(sorted(cpu_flags())),
            memory_bytes=psutil.virtual_memory().total,
            kernel=platform.release(),
            python=platform.python_version(),
        )

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the hardware gives at this moment, by `trierarch.benchmarks.roofline`."""

    read_gb_per_s: float
    bf16_gflop_per_s: float
    f32_gflop_per_s: float

    @property
    def gflop_per_s(self) -> float:
        """What weights in bfloat16 may be multiplied at: a processor without instructions for it widens them."""
        return max(self.bf16_gflop_per_s, self.f32_gflop_per_s)

    @classmethod
    def measure(cls) -> Limits:
        """Measure all of them, in a process of their own: neither torch nor its threads stay with us."""
        return cls(**_roofline())

    @staticmethod
    def read_bandwidth() -> float:
        """GB/s now: the one that drifts."""
        return float(_roofline("--bandwidth-only")["read_gb_per_s"])


def _roofline(*options: str) -> dict[str, float]:
    command = [sys.executable, "-P", "-m", "trierarch.benchmarks.roofline", *options]
    # A session of its own: Ctrl-C is heard here alone, and then ends it.
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300, start_new_session=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _cpu_model() -> str:
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
