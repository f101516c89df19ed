"""Tensors: those of a safetensors file in memory, each made an array when it is asked for."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trierarch.builder.safetensors_header import DTYPES, Header, TensorTable

Array = npt.NDArray[Any]

WRITTEN: Final[Mapping[np.dtype[Any], str]] = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(np.uint16): "BF16",
}
"""What safetensors calls the types that we write."""


class Tensors(Mapping[str, Array]):
    """By name: read-only views of the file's bytes, or a copy of one that lies askew."""

    def __init__(self, table: TensorTable, content: Array | bytearray | mmap.mmap, begin: int = 0) -> None:
        """`content` has the tensors' bytes from `begin` on, all of them."""
        self.table: Final = table
        self._content = content
        self._begin = begin

    def __getitem__(self, name: str) -> Array:
        """A tensor."""
        place = self.table.places[name]
        dtype, shape = place.header
        array: Array = np.require(self._flat(dtype, place.begin, place.end), requirements=["A"]).reshape(shape)
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self.table.places)

    def __len__(self) -> int:
        """Their number."""
        return len(self.table.places)

    def runs(self) -> Iterator[Array]:
        """All numbers: of neighbours of one type together, one after the other."""
        return (self._flat(*run) for run in self.table.runs())

    def content(self) -> Array:
        """All bytes, as they lie."""
        return self._flat("U8", 0, self.table.num_bytes)

    def _flat(self, dtype: str, begin: int, end: int) -> Array:
        kind = np.dtype(DTYPES[dtype])
        return np.frombuffer(self._content, kind, (end - begin) // kind.itemsize, self._begin + begin)


def headers_of(arrays: Mapping[str, Array]) -> Mapping[str, Header]:
    """Type, as safetensors names it, and shape of each."""
    if isinstance(arrays, Tensors):
        return arrays.table.headers
    return {name: (WRITTEN.get(array.dtype, array.dtype.name), array.shape) for name, array in arrays.items()}


def num_bytes_of(arrays: Mapping[str, Array]) -> int:
    """Of all of them."""
    return arrays.table.num_bytes if isinstance(arrays, Tensors) else sum(array.nbytes for array in arrays.values())


def size_of(header: Header) -> int:
    """Bytes of a tensor."""
    dtype, shape = header
    return math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
