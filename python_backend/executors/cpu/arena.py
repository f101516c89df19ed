"""Arena: one run of memory for all packed matrices, on huge pages where the kernel gives them."""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from trierarch.builder.errors import ResourceError

_ALIGNMENT: Final = 64
_LIBC: Final = ctypes.CDLL(None)  # its calls let go of Python's lock, those of ctypes.memset and mmap do not
_LIBC.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)


class Arena:
    """Hands out pieces of one anonymous mapping, which goes when nobody holds the arena.

    Weights are streamed once a step: on 2 MiB pages that takes 512 times fewer translations, and the processor's
    prefetcher, which stops at page ends, runs on.
    """

    def __init__(self, num_bytes: int, on_huge_pages: bool = True) -> None:
        """Map `num_bytes`. Huge pages may keep their first writer waiting while the kernel makes room for them.

        Raises:
            ResourceError: there is no room.
        """
        try:
            self._map = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError) as error:
            raise ResourceError(f"no room for {num_bytes} bytes of weights ({error}): free some memory") from error
        if on_huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.begin: Final = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        """Address of the first byte."""
        self.num_bytes: Final = num_bytes
        self._used = 0

    def populate(self) -> None:
        """Get every page now, without Python's lock. What was written is lost."""
        _LIBC.memset(self.begin, 0, self.num_bytes)

    def take(self, num_bytes: int) -> int:
        """Address of the next `num_bytes`, on a cache line."""
        address = self.begin + self._used
        self._used += aligned(num_bytes)
        assert self._used <= len(self._map), "the arena was made too small"
        return address


def aligned(num_bytes: int) -> int:
    """What a piece of `num_bytes` takes of an arena."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
