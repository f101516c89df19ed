"""One budget for the keys and values of an engine and of its draft."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.random_engine import tiny_architecture
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import ConfigError
from trierarch.builder.kv_budget import plan_kv_cache
from trierarch.builder.manifest import DType, FileDigest, KvCache, KvType, Layer, Tokens
from trierarch.builder.model import Model
from trierarch.builder.weights_file import CopiedWeights


def model_of(num_layers: int, num_kv_heads: int, kv_dtype: KvType) -> Model:
    return Model(
        name="tiny",
        source="random",
        source_quantization=None,
        architecture=tiny_architecture(layers=(Layer(),) * num_layers, num_kv_heads=num_kv_heads),
        dtype=DType.FLOAT32,
        quantization=None,
        kv_dtype=kv_dtype,
        tokens=Tokens(bos=None, eos=(), pad=0, add_bos=False),
        weights=CopiedWeights(Path("nowhere"), FileDigest(num_bytes=0, sha256="0" * 64)),
    )


def config_of(num_bytes: int | None, block_size: int = 16, fraction: float = 0.2) -> BuildConfig:
    return BuildConfig(
        model="nowhere",
        output=Path("engine"),
        kv_cache_bytes=num_bytes,
        kv_cache_memory_fraction=fraction,
        block_size=block_size,
    )


def num_blocks(kv_cache: KvCache) -> int:
    assert kv_cache.num_bytes is not None
    return kv_cache.num_bytes // (kv_cache.block_size * kv_cache.bytes_per_token)


models = st.builds(
    model_of, st.integers(1, 30), st.sampled_from([1, 2, 4]), st.sampled_from([KvType.FLOAT32, KvType.INT8])
)


@given(model=models, draft=models, block_size=st.integers(1, 64), num_bytes=st.integers(1, 1 << 24))
def test_both_hold_as_many_blocks_as_one_pool_would(
    model: Model, draft: Model, block_size: int, num_bytes: int
) -> None:
    config = config_of(num_bytes, block_size)
    pool = num_bytes // (block_size * (model.kv_bytes_per_token + draft.kv_bytes_per_token))
    if pool == 0:
        with pytest.raises(ConfigError, match=r"one block of this model and its draft takes \d+"):
            plan_kv_cache(config, model, beside=draft)
        return
    own, drafts = plan_kv_cache(config, model, beside=draft), plan_kv_cache(config, draft, beside=model)
    assert num_blocks(own) == num_blocks(drafts) == pool
    assert (own.num_bytes or 0) + (drafts.num_bytes or 0) <= num_bytes


@given(model=models, draft=models, fraction=st.floats(0.01, 0.95))
def test_fractions_of_memory_sum_up(model: Model, draft: Model, fraction: float) -> None:
    config = config_of(None, fraction=fraction)
    own, drafts = plan_kv_cache(config, model, beside=draft), plan_kv_cache(config, draft, beside=model)
    assert own.memory_fraction + drafts.memory_fraction == pytest.approx(fraction)
    assert own.memory_fraction / own.bytes_per_token == pytest.approx(drafts.memory_fraction / drafts.bytes_per_token)


@given(model=models, fraction=st.floats(0.01, 0.95), num_bytes=st.integers(1 << 20, 1 << 30))
def test_alone_it_has_all(model: Model, fraction: float, num_bytes: int) -> None:
    kv_cache = plan_kv_cache(config_of(num_bytes, fraction=fraction), model, beside=None)
    assert (kv_cache.num_bytes, kv_cache.memory_fraction) == (num_bytes, fraction)
