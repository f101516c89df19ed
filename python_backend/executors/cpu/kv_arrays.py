"""KvArrays: the keys and values of every block, in memory.

Layout: (num_layers, 2, num_blocks, num_kv_heads, block_size, head_dim), keys before values; within a tile, the
`block_size` tokens of one KV head, elements stand as the kernels like them (builder/kernels/cpu/paged_kv.h). Int8 codes
have their scales in a second array, the same without head_dim, of float32. Kernels read no slot that was not written,
so nothing is ever cleared.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trierarch.builder.manifest import Architecture, KvCache, KvType
from trierarch.python_backend.executors.kv_budget import no_room_for_kv

_ELEMENTS: Final[dict[KvType, npt.DTypeLike]] = {
    KvType.FLOAT32: np.float32,
    KvType.BFLOAT16: np.uint16,  # its bits
    KvType.INT8: np.int8,
}


class KvArrays:
    """Allocates the arrays; which block belongs to whom is the scheduler's affair."""

    def __init__(self, num_blocks: int, architecture: Architecture, kv_cache: KvCache) -> None:
        """Allocate `num_blocks` blocks.

        Raises:
            ResourceError: there is no room for them.
        """
        self.num_blocks = num_blocks
        self.block_size = kv_cache.block_size
        shape = (
            architecture.num_layers,
            2,
            num_blocks,
            architecture.num_kv_heads,
            kv_cache.block_size,
            architecture.head_dim,
        )
        try:
            # The operating system lends zeroed pages as they are first touched.
            self.array: npt.NDArray[Any] = np.zeros(shape, dtype=_ELEMENTS[kv_cache.dtype])
            self.scales = np.zeros(shape[:-1], dtype=np.float32) if kv_cache.dtype is KvType.INT8 else None
        except (MemoryError, ValueError) as error:  # the latter where it is beyond any memory
            raise no_room_for_kv("cpu", shape) from error

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """All that a block's content stands in; the third axis is the block's number."""
        return (self.array,) if self.scales is None else (self.array, self.scales)
