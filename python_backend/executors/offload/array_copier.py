"""ArrayCopier: blocks in the memory of this process, copied by numpy without the interpreter's lock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trierarch.builder.errors import ResourceError
from trierarch.python_backend.executors.offload.block_copier import BLOCK_AXIS, block_bytes_of
from trierarch.python_backend.kv.copies import Arrival, Leaving


class ArrayCopier:
    """Implements BlockCopier. A step waits for what leaves: it takes about as long as reading that block once."""

    def __init__(self, arrays: Sequence[npt.NDArray[Any]], num_slots: int, layout: str) -> None:
        """Over (num_layers, 2, num_blocks, ...) of keys and values. layout: names how elements stand in them.

        Raises:
            ResourceError: there is no room for the slots.
        """
        self._arrays = tuple(arrays)
        shapes = [(*array.shape[:BLOCK_AXIS], *array.shape[BLOCK_AXIS + 1 :]) for array in arrays]
        try:
            # The operating system lends zeroed pages as they are first touched.
            self._slots = tuple(
                np.zeros((num_slots, *shape), array.dtype) for shape, array in zip(shapes, arrays, strict=True)
            )
        except (MemoryError, ValueError) as error:
            raise no_room(num_slots, self.block_bytes) from error
        self.form = f"{layout} {[(shape, array.dtype.str) for shape, array in zip(shapes, arrays, strict=True)]}"

    @property
    def block_bytes(self) -> int:
        """See BlockCopier.block_bytes."""
        return block_bytes_of(self._arrays)

    @property
    def pinned_bytes(self) -> int:
        """See BlockCopier.pinned_bytes."""
        return 0

    def leave(self, leaving: Sequence[Leaving]) -> None:
        """See BlockCopier.leave."""
        for one in leaving:
            for slots, array in zip(self._slots, self._arrays, strict=True):
                slots[one.slot] = array[:, :, one.block_id]

    def bring(self, arrivals: Sequence[Arrival]) -> None:
        """See BlockCopier.bring."""
        for one in arrivals:
            for slots, array in zip(self._slots, self._arrays, strict=True):
                array[:, :, one.block_id] = slots[one.slot]

    def fill(self, block_id: int, content: bytearray) -> None:
        """See BlockCopier.fill."""
        offset = 0
        for slots, array in zip(self._slots, self._arrays, strict=True):
            shape = slots.shape[1:]
            count = slots[0].size
            array[:, :, block_id] = np.frombuffer(content, array.dtype, count, offset).reshape(shape)
            offset += count * array.itemsize

    def pieces(self, slot: int) -> list[memoryview]:
        """See BlockCopier.pieces."""
        return [slots[slot].reshape(-1).view(np.uint8).data for slots in self._slots]


def no_room(num_slots: int, block_bytes: int) -> ResourceError:
    """The error of slots that could not be allocated."""
    return ResourceError(
        f"no room in host memory for {num_slots} blocks of {block_bytes} bytes: free some memory, or ask for fewer "
        "kv_cache_host_memory_bytes (--kv-host-bytes)"
    )
