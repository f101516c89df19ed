"""Compiling: cached, reproducible, and where it cannot be done said aloud and done without."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.checkpoints import random_checkpoint
from support.random_engine import tiny_architecture
from trierarch.builder import compile as compiling
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import Architecture, DType, KvCache, KvType, Moe, Quantization, WeightType
from trierarch.builder.progress import NoProgress
from trierarch.builder.verify import verify

GENERIC = compiling.INSTRUCTION_SETS[-1]
ARCHITECTURE = tiny_architecture(head_dim=16)

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of one line in place of ours, and a cache of its own."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "library.cpp").write_text('extern "C" const char* where() { return __FILE__; }\n')
    monkeypatch.setattr(compiling, "SOURCES", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@needs_compiler
def test_equal_sources_give_equal_bytes_wherever_they_lie(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiling.compile_library(GENERIC)
    elsewhere = shutil.copytree(sources, tmp_path / "other" / "place")
    monkeypatch.setattr(compiling, "SOURCES", elsewhere)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert compiling.compile_library(GENERIC) == first
    assert str(tmp_path).encode() not in first


@needs_compiler
def test_compiles_once_for_the_same_sources(sources: Path, tmp_path: Path) -> None:
    first = compiling.compile_library(GENERIC)
    (cached,) = (tmp_path / "cache" / "trierarch" / "kernels").iterdir()
    cached.write_bytes(b"from the cache")
    assert compiling.compile_library(GENERIC) == b"from the cache"
    (sources / "more.h").write_text("// changed\n")
    assert compiling.compile_library(GENERIC) == first


def test_without_a_compiler_the_engine_is_eager_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    checkpoint = random_checkpoint("llama", tmp_path / "hf")
    manifest = build(BuildConfig(model=str(checkpoint), output=tmp_path / "engine"))
    assert manifest.kernels is None
    assert manifest.requires.cpu_flags == ()
    assert "without compiled kernels, several times slower: no C++ compiler (g++ or c++) is on PATH" in caplog.text


@needs_compiler
def test_a_failing_compiler_is_quoted(sources: Path, caplog: pytest.LogCaptureFixture) -> None:
    (sources / "library.cpp").write_text("#error of the test\n")
    assert compiling.compile_kernels(ARCHITECTURE, DType.FLOAT32, kv_cache(), NoProgress()) is None
    assert "#error of the test" in caplog.text


def kv_cache(dtype: KvType = KvType.FLOAT32, block_size: int = 16) -> KvCache:
    return KvCache(dtype=dtype, block_size=block_size, bytes_per_token=1)


MOE = Moe(num_experts=2, experts_per_token=1, intermediate_size=8, normalize_top_k=True)


@pytest.mark.parametrize(
    ("architecture", "dtype", "reason"),
    [
        (tiny_architecture(head_dim=16, moe=MOE), DType.FLOAT32, "mixture of experts"),
        (tiny_architecture(head_dim=8), DType.FLOAT32, "head_dim is 8"),
        (tiny_architecture(head_dim=16, intermediate_size=7), DType.FLOAT32, "intermediate_size must be even"),
        (ARCHITECTURE, DType.FLOAT16, "float16"),
    ],
)
def test_models_without_kernels_are_named(
    architecture: Architecture, dtype: DType, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert compiling.compile_kernels(architecture, dtype, kv_cache(KvType(dtype)), NoProgress()) is None
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("cache", "reason"),
    [
        (kv_cache(block_size=8), "block_size is 8, and they want a multiple of 16"),
        (kv_cache(KvType.BFLOAT16), "kv_cache_dtype is bfloat16, and they want float32 or int8"),
        (kv_cache(KvType.FP8), "kv_cache_dtype is fp8, and they want float32 or int8"),
    ],
)
def test_kv_caches_without_kernels_are_named(cache: KvCache, reason: str) -> None:
    assert compiling.obstacle(ARCHITECTURE, DType.FLOAT32, cache) == reason
    assert compiling.obstacle(ARCHITECTURE, DType.FLOAT32, kv_cache(KvType.INT8)) is None


def test_fp8_weights_have_no_kernels() -> None:
    cache = kv_cache(KvType.FLOAT32)
    fp8, int4 = (Quantization(weights=one) for one in (WeightType.FP8, WeightType.INT4))
    assert "fp8 weights" in (compiling.obstacle(ARCHITECTURE, DType.FLOAT32, cache, fp8) or "")
    assert compiling.obstacle(ARCHITECTURE, DType.FLOAT32, cache, int4) is None


@needs_compiler
def test_an_engine_holds_its_kernels_and_names_their_cpu(sources: Path, tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "hf")
    manifest = build(BuildConfig(model=str(checkpoint), output=tmp_path / "engine"))
    best = compiling.best_instruction_set()
    assert manifest.kernels == f"kernels/cpu-{best.name}.so"
    assert manifest.kernels in manifest.files
    assert manifest.requires.cpu_flags == best.cpu_flags
    assert verify(tmp_path / "engine", digests=True) == manifest
    plain = build(BuildConfig(model=str(checkpoint), output=tmp_path / "plain", compile=False))
    assert (plain.kernels, plain.requires.cpu_flags) == (None, ())
