"""The memory for keys and values, shared between an engine and its draft."""

from __future__ import annotations

from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import KvCache
from trierarch.builder.model import Model


def plan_kv_cache(config: BuildConfig, model: Model, beside: Model | None) -> KvCache:
    """The cache of `model`, which shares the budget with that of `beside`: either gets what a token's bytes are of both.

    The two compute the same tokens. Shares of `kv_cache_bytes` buy the same number of blocks, as many as one undivided
    pool would hold; shares of the memory free at load sum up to the one that was asked for.

    Raises:
        ConfigError: `kv_cache_bytes` buy no block.
    """
    own_bytes = model.kv_bytes_per_token
    all_bytes = own_bytes + (0 if beside is None else beside.kv_bytes_per_token)
    num_bytes = config.kv_cache_bytes
    if num_bytes is not None and num_bytes < all_bytes * config.block_size:
        whose = "this model" if beside is None else "this model and its draft"
        raise ConfigError(f"kv_cache_bytes is {num_bytes}: one block of {whose} takes {all_bytes * config.block_size}")
    return KvCache(
        dtype=model.kv_dtype,
        block_size=config.block_size,
        num_bytes=None if num_bytes is None else num_bytes * own_bytes // all_bytes,
        memory_fraction=config.kv_cache_memory_fraction * (own_bytes / all_bytes),
        bytes_per_token=own_bytes,
        enable_prefix_caching=config.enable_prefix_caching,
    )
