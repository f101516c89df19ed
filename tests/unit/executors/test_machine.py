from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from trierarch.python_backend.executors import machine
from trierarch.python_backend.executors.torch import device


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty control group on a machine of 8 cores with two threads each."""
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 16 if logical else 8)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    return tmp_path


@pytest.mark.parametrize("quota, cores", [(None, 8), ("max 100000", 8), ("300000 100000", 3), ("50000 100000", 1)])
def test_cores_within_the_containers_quota(cgroup: Path, quota: str | None, cores: int) -> None:
    if quota is not None:
        (cgroup / "cpu.max").write_text(quota + "\n")
    assert machine.num_cores() == cores


@pytest.mark.parametrize("num_logical, cores", [(16, 8), (4, 2), (1, 1)])
def test_cores_within_the_affinity(cgroup: Path, monkeypatch: pytest.MonkeyPatch, num_logical: int, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(num_logical)), raising=False)
    assert machine.num_cores() == cores


@pytest.mark.parametrize(
    "limit, used, free", [(None, None, 1000), ("max", "5", 1000), ("700", "300", 400), ("7", "9", 0)]
)
def test_memory_within_the_containers_limit(cgroup: Path, limit: str | None, used: str | None, free: int) -> None:
    for name, value in (("memory.max", limit), ("memory.current", used)):
        if value is not None:
            (cgroup / name).write_text(value + "\n")
    assert machine.free_memory() == free
    assert device.free_memory(torch.device("cpu")) == free


def test_torchs_threads_never_exceed_what_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    for cores in (1, 64):
        monkeypatch.setattr(machine, "num_cores", lambda cores=cores: cores)
        device.prepare_cpu()
    assert chosen == [1, 2]


@pytest.mark.parametrize("told, cores, threads", [("1", 64, 1), ("3", 64, 3), ("3", 2, 2)])
def test_the_kernels_threads_never_exceed_what_openmp_was_told(told: str, cores: int, threads: int) -> None:
    """In a process of its own: OpenMP reads its environment once."""
    code = (
        f"from trierarch.python_backend.executors import machine; machine.num_cores = lambda: {cores}\n"
        "from trierarch.python_backend.executors.cpu.openmp import num_threads; print(num_threads())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": told}, capture_output=True, check=True)
    assert int(done.stdout) == threads


def test_dropped_pages_come_back_from_the_file(tmp_path: Path) -> None:
    numbers = torch.arange(10_000, dtype=torch.float32)
    numbers.numpy().tofile(tmp_path / "numbers")
    mapped = torch.from_file(str(tmp_path / "numbers"), shared=False, size=len(numbers))
    assert torch.equal(mapped, numbers)
    machine.drop_mapped_pages(mapped[3:].data_ptr(), mapped[3:].nbytes)
    assert torch.equal(mapped, numbers)
