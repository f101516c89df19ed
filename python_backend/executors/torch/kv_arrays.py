"""KvArrays: the keys and values of every block, on the device.

Layout: (num_layers, 2, num_blocks + 1, num_kv_heads, block_size, head_dim), keys before values. What is contiguous is a
*tile*, the `block_size` tokens of one KV head, because attention reads one head at a time: gathering tiles yields each
head's keys ready for a batched matrix product, with no transposition. A block stays whole within a layer, so that one
can be copied or offloaded, and the layout is the one TensorRT-LLM and FlashInfer's kernels expect. Int8 codes have their
scales in a second array, (num_layers, 2, num_blocks + 1, num_kv_heads, block_size) of float32, one for each row of
head_dim. Compiled kernels put the elements of a tile in an order of their own (builder/kernels/cpu/paged_kv.h).

Attention over a padded batch multiplies what it must not see by zero, and NaN times zero is NaN. Two invariants keep
one sequence's overflow out of another's result: the last block belongs to nobody and is always zero (padding reads it),
and a block is zeroed when its first slot is written (its old owner's leavings are gone).
"""

from __future__ import annotations

import logging
import math
from typing import Final

import numpy as np
import torch

from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import Architecture, EngineManifest, KvCache, KvType, Limits
from trierarch.python_backend.executors.torch.kv_rows import KvRows
from trierarch.python_backend.executors.torch.machine import free_memory

logger = logging.getLogger(__name__)

_ELEMENTS: Final = {
    KvType.FLOAT32: torch.float32,
    KvType.BFLOAT16: torch.bfloat16,
    KvType.FLOAT16: torch.float16,
    KvType.INT8: torch.int8,
}


class LayerKv:
    """One layer's keys and values. Tile (block, head) is number block * num_kv_heads + head."""

    def __init__(self, array: torch.Tensor, scales: torch.Tensor | None) -> None:
        """array: (2, num_blocks + 1, num_kv_heads, block_size, head_dim); scales: the same without head_dim."""
        self._keys = KvRows(array[0], None if scales is None else scales[0])
        self._values = KvRows(array[1], None if scales is None else scales[1])

    def write(self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store a step's tokens. rows: (num_tokens * num_kv_heads); keys, values: (num_tokens, num_kv_heads, head_dim).

        A row is one head's slot of one token: tile * block_size + offset.
        """
        self._keys.write(rows, keys)
        self._values.write(rows, values)

    def gather(self, tiles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of some tiles, as `dtype`. tiles: (n, num_kv_heads, num_tiles).

        Returns (n, num_kv_heads, num_tiles * block_size, head_dim) each.
        """
        return self._keys.gather(tiles, dtype), self._values.gather(tiles, dtype)


class KvArrays:
    """Allocates the arrays and keeps the two invariants; which block belongs to whom is the scheduler's affair."""

    def __init__(self, num_blocks: int, architecture: Architecture, kv_cache: KvCache, device: torch.device) -> None:
        """Allocate `num_blocks` blocks and the padding block, all zero.

        Raises:
            ResourceError: the device has no room for them.
        """
        shape = (
            architecture.num_layers,
            2,
            num_blocks + 1,
            architecture.num_kv_heads,
            kv_cache.block_size,
            architecture.head_dim,
        )
        self.num_blocks = num_blocks
        self._array = _zeros(shape, _ELEMENTS[kv_cache.dtype], device)
        self._scales = _zeros(shape[:-1], torch.float32, device) if kv_cache.dtype is KvType.INT8 else None
        self.layers = tuple(
            LayerKv(array, None if self._scales is None else self._scales[index])
            for index, array in enumerate(self._array)
        )

    @property
    def array(self) -> torch.Tensor:
        """All of it, as the module says it is laid out."""
        return self._array

    @property
    def scales(self) -> torch.Tensor | None:
        """Of int8 codes, as the module says they are laid out; else None."""
        return self._scales

    @property
    def padding_block(self) -> int:
        """Id of the block that is always zero."""
        return self.num_blocks

    def clear(self, blocks: torch.Tensor) -> None:
        """Zero blocks that get a new owner. blocks: (n) int64."""
        self._array.index_fill_(2, blocks, 0)
        if self._scales is not None:
            self._scales.index_fill_(2, blocks, 0)


def plan_num_blocks(manifest: EngineManifest, device: torch.device) -> int:
    """How many blocks the engine's budget buys on this device; logged.

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
        budget = int(kv_cache.memory_fraction * free_memory(device))
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


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    try:
        if device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        # The kernel lends zeroed pages as they are first touched; torch would touch them all at load.
        num_bytes = math.prod(shape) * dtype.itemsize
        return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(
            f"no room on {device} for a KV cache of shape {shape}: free some memory, or rebuild the engine with a "
            "smaller --kv-cache-bytes"
        ) from error
