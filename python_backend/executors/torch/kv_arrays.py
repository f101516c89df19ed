"""KvArrays: the keys and values of every block, on the device.

Layout: (num_layers, 2, num_blocks + 1, num_kv_heads, block_size, head_dim), keys before values. What is contiguous is a
*tile*, the `block_size` tokens of one KV head, because attention reads one head at a time: gathering tiles yields each
head's keys ready for a batched matrix product, with no transposition. A block stays whole within a layer, so that one
can be copied or offloaded, and the layout is the one TensorRT-LLM and FlashInfer's kernels expect. Codes have their
scales in a second array, (num_layers, 2, num_blocks + 1, num_kv_heads, block_size) of float32, one for each row of
head_dim.

Attention over a padded batch multiplies what it must not see by zero, and NaN times zero is NaN. Two invariants keep
one sequence's overflow out of another's result: the last block belongs to nobody and is always zero (padding reads it),
and a block is zeroed when its first slot is written (its old owner's leavings are gone).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch

from trierarch.builder.manifest import Architecture, KvCache, KvType
from trierarch.python_backend.executors.kv_budget import no_room_for_kv
from trierarch.python_backend.executors.torch.kv_rows import KvRows
from trierarch.python_backend.executors.torch.row_codes import as_bytes

_ELEMENTS: Final = {
    KvType.FLOAT32: torch.float32,
    KvType.BFLOAT16: torch.bfloat16,
    KvType.FLOAT16: torch.float16,
    KvType.INT8: torch.int8,
    KvType.FP8: torch.float8_e4m3fn,
}


class LayerKv:
    """One layer's keys and values. Tile (block, head) is number block * num_kv_heads + head."""

    def __init__(self, array: torch.Tensor, scales: torch.Tensor | None) -> None:
        """array: (2, num_blocks + 1, num_kv_heads, block_size, head_dim); scales: the same without head_dim."""
        self.array, self.scales = array, scales
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
        self._scales = _zeros(shape[:-1], torch.float32, device) if kv_cache.dtype.is_quantized else None
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
        """Of codes, as the module says they are laid out; else None."""
        return self._scales

    @property
    def arrays(self) -> tuple[torch.Tensor, ...]:
        """All that a block's content stands in; the third axis is the block's number."""
        return (self._array,) if self._scales is None else (self._array, self._scales)

    @property
    def padding_block(self) -> int:
        """Id of the block that is always zero."""
        return self.num_blocks

    def clear(self, blocks: torch.Tensor) -> None:
        """Zero blocks that get a new owner. blocks: (n) int64."""
        as_bytes(self._array).index_fill_(2, blocks, 0)
        if self._scales is not None:
            self._scales.index_fill_(2, blocks, 0)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    try:
        if device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        # The kernel lends zeroed pages as they are first touched; torch would touch them all at load.
        num_bytes = math.prod(shape) * dtype.itemsize
        return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise no_room_for_kv(str(device), shape) from error
