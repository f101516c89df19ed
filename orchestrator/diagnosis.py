"""What this machine has for Trierarch, one finding at a time."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

import psutil

from trierarch.builder import machine
from trierarch.builder.compile import best_instruction_set, find_compiler
from trierarch.builder.errors import TrierarchError
from trierarch.orchestrator.fetch import fetch
from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.run_directory import SHARED_MEMORY, RunDirectory
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.sizes import format_size
from trierarch.orchestrator.triton_install import TritonInstall, find_triton
from trierarch.orchestrator.triton_server import TritonServer

FLAGS_THAT_MATTER: Final = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimd", "bf16", "i8mm",
)  # fmt: skip
SHARED_MEMORY_NEEDED: Final = 64 << 20
START_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    value: str
    state: Literal["fact", "good", "lacking", "broken"] = "fact"
    """lacking: something more would be possible; broken: engines cannot be served."""
    remedy: str = ""


def diagnose() -> Iterator[Finding]:
    """Look at everything, the cheap things first."""
    yield Finding("trierarch", f"{version('trierarch')}, Python {sys.version.split()[0]}, torch {version('torch')}")
    yield _cpu()
    memory = psutil.virtual_memory()
    yield Finding("memory", f"{format_size(memory.available)} available of {format_size(memory.total)}")
    yield _compiler()
    yield _cuda()
    yield _shared_memory()
    yield from _triton()
    yield _tensorrt_llm()
    yield _hub()


def _cpu() -> Finding:
    flags = [flag for flag in FLAGS_THAT_MATTER if flag in machine.cpu_flags()]
    cores = len(os.sched_getaffinity(0))
    dtype = machine.default_dtype().value
    return Finding(
        "CPU",
        f"{sysconfig.get_platform()}, {cores} cores, {' '.join(flags) or 'no vector flags known'}; builds {dtype}",
    )


def _compiler() -> Finding:
    path = find_compiler()
    if path is None:
        remedy = "apt-get install g++"
        return Finding(
            "compiler", "none: engines run without compiled kernels, several times slower", "lacking", remedy
        )
    return Finding("compiler", f"{path}: engines get kernels for {best_instruction_set().name}", "good")


def _cuda() -> Finding:
    architectures = machine.cuda_architectures()
    if architectures:
        found = f"{len(architectures)} devices: {', '.join(architectures)}"
        problem, _, remedy = (machine.gpu_obstacle() or "").partition("; ")
        return Finding("CUDA", f"{found}; {problem}", "lacking", remedy) if problem else Finding("CUDA", found, "good")
    return Finding("CUDA", "no device: engines run on the CPU", "lacking", "an NVIDIA driver makes its GPUs usable")


def _shared_memory() -> Finding:
    if not SHARED_MEMORY.is_dir():
        return Finding(
            "shared memory", "no /dev/shm", "broken", "mount a tmpfs there: Triton's Python backend needs it"
        )
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < SHARED_MEMORY_NEEDED:
        remedy = "in a container: docker run --shm-size=1g"
        return Finding("shared memory", f"{format_size(free)} free in /dev/shm", "broken", remedy)
    return Finding("shared memory", f"{format_size(free)} free in /dev/shm", "good")


def _triton() -> Iterator[Finding]:
    try:
        install = find_triton()
        found = _run_triton(install)
    except TrierarchError as error:
        problem, _, remedy = str(error).partition(": ")
        yield Finding("Triton", problem, "broken", remedy)
        return
    yield Finding("Triton", f"{found} ({install.origin}), {install.binary}", "good")
    yield Finding("libpython", str(install.libpython or "brought by the server"), "good")


def _run_triton(install: TritonInstall) -> str:
    """The version that the server answers with once it runs; a folder without models is soon ready."""
    run = RunDirectory(install)
    config = ServerConfig(ports=Ports(http=0, grpc=0, metrics=0), ready_timeout=START_SECONDS, drain_timeout=0)
    try:
        with tempfile.TemporaryDirectory() as empty, TritonServer(install.binary, Path(empty), run, config) as server:
            server.start()
            return str(json.loads(fetch(f"{server.endpoints.http}/v2"))["version"])
    finally:
        run.remove()


def _tensorrt_llm() -> Finding:
    try:
        return Finding("TensorRT-LLM", version("tensorrt-llm"), "good")
    except PackageNotFoundError:
        remedy = "run inside a Triton image that carries TensorRT-LLM, on an NVIDIA GPU"
        return Finding(
            "TensorRT-LLM",
            "not installed: engines for it are built here, and neither compiled nor served",
            "lacking",
            remedy,
        )


def _hub() -> Finding:
    try:
        return Finding("hub", f"huggingface-hub {version('huggingface-hub')}: checkpoints by hub id", "good")
    except PackageNotFoundError:
        return Finding("hub", "no checkpoints by hub id", "lacking", "pip install 'trierarch[hub]'")
