"""The type of keys and values that a build is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.checkpoints import random_checkpoint
from support.forward import prompt_logits
from trierarch.builder.build import build
from trierarch.builder.compile import find_compiler
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import DType, KvType

HEADS, LAYERS, HEAD_DIM = 2, 3, 16
PROMPT = list(range(3, 43))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint("llama", tmp_path_factory.mktemp("kv") / "tiny")


@pytest.mark.parametrize(
    ("asked", "stored", "row_bytes"),
    [
        (None, KvType.BFLOAT16, HEAD_DIM * 2),
        (KvType.FLOAT32, KvType.FLOAT32, HEAD_DIM * 4),
        (KvType.INT8, KvType.INT8, HEAD_DIM + 4),
        (KvType.FP8, KvType.FP8, HEAD_DIM + 4),
    ],
)
def test_the_manifest_counts_its_bytes(
    checkpoint: Path, tmp_path: Path, asked: KvType | None, stored: KvType, row_bytes: int
) -> None:
    config = BuildConfig(
        model=str(checkpoint),
        output=tmp_path / "engine",
        dtype=DType.BFLOAT16,
        kv_cache_dtype=asked,
        accuracy_check=False,
        compile=False,
    )
    kv_cache = build(config).kv_cache
    assert kv_cache.dtype is stored
    assert kv_cache.bytes_per_token == 2 * LAYERS * HEADS * row_bytes


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_an_int8_cache_runs_compiled_and_eagerly_near_the_unquantised_one(checkpoint: Path, tmp_path: Path) -> None:
    logits = {}
    for kv_dtype in (None, KvType.INT8):
        engine = tmp_path / str(kv_dtype)
        config = BuildConfig(
            model=str(checkpoint),
            output=engine,
            dtype=DType.FLOAT32,
            kv_cache_dtype=kv_dtype,
            accuracy_check=False,
        )
        build(config)
        for is_compiled in (False, True):
            logits[kv_dtype, is_compiled] = prompt_logits(engine, PROMPT, [29, 1, 10], is_compiled)
    exact = logits[None, False]
    for is_compiled in (False, True):
        error = (logits[KvType.INT8, is_compiled] - exact).norm() / exact.norm()
        assert 1e-5 < error < 2e-2  # it is quantised, and hardly worse for it
    torch.testing.assert_close(logits[KvType.INT8, True], logits[KvType.INT8, False], rtol=0, atol=2e-3)
