"""BlockCopier: moves blocks between the device's arrays and slots of host memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from trierarch.python_backend.kv.copies import Arrival, Leaving

BLOCK_AXIS: Final = 2
"""Of an array of keys and values, (num_layers, 2, num_blocks, ...)."""


class BlockArray(Protocol):
    """Keys or values of every block: numpy's or torch's, (num_layers, 2, num_blocks, ...)."""

    @property
    def nbytes(self) -> int:
        """Of all of it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its axes."""
        ...


def block_bytes_of(arrays: Iterable[BlockArray]) -> int:
    """Of one block's content, which stands in all of them."""
    return sum(array.nbytes // array.shape[BLOCK_AXIS] for array in arrays)


class BlockCopier(Protocol):
    """Copies contents; whose they are is decided elsewhere. A block's content is a fixed number of bytes."""

    @property
    def block_bytes(self) -> int:
        """Of one block's content."""
        ...

    @property
    def form(self) -> str:
        """What the bytes are: contents are exchangeable only between copiers of the same form and the same engine."""
        ...

    @property
    def pinned_bytes(self) -> int:
        """Of host memory that is page-locked."""
        ...

    def leave(self, leaving: Sequence[Leaving]) -> None:
        """Copy blocks out. On return they may be written over by whatever the executor's thread starts next. Its thread only."""
        ...

    def bring(self, arrivals: Sequence[Arrival]) -> None:
        """Fill blocks from slots; they are filled on return. Any thread but the executor's, one at a time."""
        ...

    def fill(self, block_id: int, content: bytearray) -> None:
        """Fill a block with what `pieces` gave; it is filled on return. As `bring`."""
        ...

    def pieces(self, slot: int) -> list[memoryview]:
        """A slot's content, one piece behind the other; not to be used once the slot is somebody else's. Any thread."""
        ...
