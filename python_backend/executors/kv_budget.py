"""How many KV blocks an engine's budget buys."""

from __future__ import annotations

import logging
import math

from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import EngineManifest, KvCache, Limits

logger = logging.getLogger(__name__)


def plan_num_blocks(manifest: EngineManifest, free_bytes: int, device: str = "cpu") -> int:
    """How many blocks the engine's budget buys where `free_bytes` are left on `device`; logged.

    `kv_cache.num_bytes` is taken at its word. A fraction of free memory is only taken as far as a full batch of
    longest sequences can use it.

    Raises:
        ResourceError: one sequence of `max_seq_len` tokens would not fit.
    """
    limits, kv_cache = manifest.limits, manifest.kv_cache
    block_bytes = kv_cache.block_size * kv_cache.bytes_per_token
    per_sequence = math.ceil(limits.max_seq_len / kv_cache.block_size)
    if kv_cache.num_bytes is not None:
        budget = kv_cache.num_bytes
        num_blocks = budget // block_bytes
    else:
        budget = int(kv_cache.memory_fraction * free_bytes)
        num_blocks = min(budget // block_bytes - 1, limits.max_batch_size * per_sequence)  # 1 pads
    if num_blocks < per_sequence:
        raise ResourceError(_too_small(budget, per_sequence * block_bytes, limits, kv_cache))
    logger.info(
        "KV cache on %s: %d blocks of %d tokens, %d tokens, %.0f MiB",
        device,
        num_blocks,
        kv_cache.block_size,
        num_blocks * kv_cache.block_size,
        num_blocks * block_bytes / 2**20,
    )
    return num_blocks


def no_room_for_kv(device: str, shape: tuple[int, ...]) -> ResourceError:
    """The error of an array of keys and values that could not be allocated."""
    return ResourceError(
        f"no room on {device} for a KV cache of shape {shape}: free some memory, or rebuild the engine with a "
        "smaller --kv-cache-bytes"
    )


def _too_small(budget: int, needed: int, limits: Limits, kv_cache: KvCache) -> str:
    source = (
        f"kv_cache.num_bytes is {budget}"
        if kv_cache.num_bytes is not None
        else f"kv_cache.memory_fraction {kv_cache.memory_fraction:g} of free memory is {budget} bytes"
    )
    return (
        f"{source}, but one sequence of max_seq_len {limits.max_seq_len} needs {needed}: free some memory, or rebuild "
        f"with --kv-cache-bytes {needed} or more, or with a smaller --max-seq-len"
    )
