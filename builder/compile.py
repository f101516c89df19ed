"""Compiling the decoder's kernels for this machine's kind of CPU: C++ behind a plain C interface, no torch headers.

One shared library runs any dense decoder (the architecture is data), so it is compiled once for an instruction set and
found in a cache by the digest of its sources, options and compiler after that. See docs/decisions/0003.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trierarch.builder import machine
from trierarch.builder.manifest import Architecture, DType, KvCache, KvType, Quantization, WeightType
from trierarch.builder.progress import Progress

logger = logging.getLogger(__name__)

SOURCES: Final = Path(__file__).parent / "kernels" / "cpu"
LANES: Final = 16
"""32-bit lanes of the kernels' vectors, whatever the machine's registers."""
_COMPILERS: Final = ("g++", "c++")
_OPTIONS: Final = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-shared",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    # Nothing of the machine or the hour gets into the library: equal sources give equal bytes.
    "-s",
    "-Wl,--build-id=none",
)
_TIMEOUT_S: Final = 600


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """A kind of CPU."""

    name: str
    cpu_flags: tuple[str, ...]
    """What /proc/cpuinfo must list."""
    options: tuple[str, ...]


_AVX512: Final = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_AVX2: Final = ("avx2", "bmi2", "f16c", "fma")
INSTRUCTION_SETS: Final = (
    InstructionSet(
        "avx512-bf16",
        (*_AVX2, *_AVX512, "avx512_bf16", "avx512_vnni"),
        ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-mprefer-vector-width=512"),
    ),
    InstructionSet("avx512", (*_AVX2, *_AVX512), ("-march=x86-64-v4", "-mprefer-vector-width=512")),
    InstructionSet("avx2", _AVX2, ("-march=x86-64-v3",)),
    InstructionSet("generic", (), ()),
)
"""Best first; the last runs anywhere."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """A compiled library, ready to be stored."""

    name: str
    """Path in the engine."""
    content: bytes
    cpu_flags: tuple[str, ...]


def compile_kernels(
    architecture: Architecture,
    dtype: DType,
    kv_cache: KvCache,
    progress: Progress,
    quantization: Quantization | None = None,
) -> Kernels | None:
    """The library for this machine, or None, with a warning that says why, where the engine has to run eagerly."""
    reason = obstacle(architecture, dtype, kv_cache, quantization)
    if reason is None:
        progress.stage("kernels", None)
        instruction_set = best_instruction_set()
        try:
            content = compile_library(instruction_set)
        except CompilerError as error:
            reason = str(error)
        else:
            return Kernels(f"kernels/cpu-{instruction_set.name}.so", content, instruction_set.cpu_flags)
    logger.warning("on a CPU the engine will run without compiled kernels, several times slower: %s", reason)
    return None


def obstacle(
    architecture: Architecture, dtype: DType, kv_cache: KvCache, quantization: Quantization | None = None
) -> str | None:
    """Why the kernels cannot run a model; None where they can."""
    if dtype is DType.FLOAT16:
        return "there are none for float16; bfloat16 and float32 have them"
    if quantization is not None and (quantization.weights is WeightType.FP8 or quantization.num_fp8):
        return "there are none for fp8 weights, which are for GPUs; int8 and int4 have them"
    if architecture.moe is not None:
        return "there are none for mixture of experts"
    if architecture.head_dim % LANES:
        return f"head_dim is {architecture.head_dim}, and they want a multiple of {LANES}"
    if architecture.hidden_size % 2 or architecture.intermediate_size % 2:
        return "hidden_size and intermediate_size must be even for them"
    if kv_cache.block_size % LANES:
        return f"block_size is {kv_cache.block_size}, and they want a multiple of {LANES}"
    if kv_cache.dtype not in (KvType(dtype), KvType.INT8):
        return f"kv_cache_dtype is {kv_cache.dtype}, and they want {dtype} or {KvType.INT8}"
    return None


def best_instruction_set() -> InstructionSet:
    """The first that this machine has."""
    return next(one for one in INSTRUCTION_SETS if machine.cpu_flags().issuperset(one.cpu_flags))


def find_compiler() -> str | None:
    """Path of the C++ compiler that builds use."""
    return next(filter(None, map(shutil.which, _COMPILERS)), None)


class CompilerError(Exception):
    """There is no compiler, or it failed."""


def compile_library(instruction_set: InstructionSet) -> bytes:
    """The shared library's bytes, from the cache where it was compiled before.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """
    compiler = find_compiler()
    if compiler is None:
        raise CompilerError(f"no C++ compiler ({' or '.join(_COMPILERS)}) is on PATH; install one and build again")
    options = (*_OPTIONS, *instruction_set.options)
    cached = _cache() / f"{_digest(compiler, options)}.so"
    with suppress(OSError):
        return cached.read_bytes()
    content = _compile(compiler, options)
    with suppress(OSError):  # a cache that cannot be written costs only time
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, cached)
    return content


def _compile(compiler: str, options: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "kernels.so"
        command = [compiler, *options, "library.cpp", "-o", str(output)]
        # In the sources' folder and by a relative name: the path of this installation must not get into the library.
        try:
            done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilerError(f"{compiler} failed: {error}") from error
        if done.returncode != 0:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            raise CompilerError(f"{compiler} failed: {first}")
        return output.read_bytes()


def _digest(compiler: str, options: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for piece in _ingredients(compiler, options):
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()


def _ingredients(compiler: str, options: tuple[str, ...]) -> Iterator[bytes]:
    try:
        yield subprocess.run([compiler, "--version"], capture_output=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise CompilerError(f"{compiler} --version failed: {error}") from error
    yield "\0".join(options).encode()
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".h", ".cpp"):
            yield path.name.encode()
            yield path.read_bytes()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trierarch" / "kernels"
