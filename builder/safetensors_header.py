"""TensorTable: which tensors a safetensors file holds, and where; believed only as far as it was checked.

The header is a JSON object: `__metadata__`, strings by name, and for each tensor its type, shape and place among the
tensors' bytes, which lie without gaps (safetensors' own description).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Header = tuple[str, tuple[int, ...]]
"""A tensor's type, as safetensors names it, and its shape."""

DTYPES: Final[Mapping[str, npt.DTypeLike]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "F8_E4M3": np.uint8,  # its bits
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
METADATA: Final = "__metadata__"
_ITEM_BYTES: Final = {name: np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}
_MAX_AXES: Final = 8
_MAX_SIZE: Final = 1 << 48
_MAX_REMEMBERED: Final = 16
"""Tables; an engine's adapters have few."""
_MAX_REMEMBERED_LENGTH: Final = 1 << 18
"""Characters of a header that is remembered: two thousand tensors."""
_METADATA_FIRST: Final = f'{{"{METADATA}":{{'


class SafetensorsError(ValueError):
    """Not a safetensors file, or a damaged one. Whoever opened it says what that means, and what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's."""

    header: Header
    begin: int
    """First of its bytes, counted from the first of all tensors'."""
    end: int


class TensorTable:
    """The tensors of a file. What is worked out of one may be kept by it: files of equal tables mostly have the same object."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        """entries: name -> what the header says of a tensor.

        Raises:
            SafetensorsError: that cannot be, or tensors overlap or leave gaps.
        """
        self.places: Final[Mapping[str, Place]] = {name: _place(name, entry) for name, entry in entries.items()}
        self.headers: Final[Mapping[str, Header]] = {name: place.header for name, place in self.places.items()}
        self.names: Final = tuple(sorted(self.places, key=self._order))
        """As they lie."""
        self.num_bytes: Final = self._checked_end()
        """Of all tensors."""
        self.is_as_written: Final = self.names == tuple(sorted(self.places, key=self._written_order))
        """Whether they lie as `write_safetensors` lays them: larger elements first, then by name."""

    def runs(self) -> Iterator[tuple[str, int, int]]:
        """(type, begin, end) of neighbours of one type, as they lie."""
        for dtype, names in groupby(self.names, key=lambda name: self.headers[name][0]):
            run = tuple(names)
            yield dtype, self.places[run[0]].begin, self.places[run[-1]].end

    def _order(self, name: str) -> tuple[int, int]:
        place = self.places[name]
        return place.begin, place.end

    def _written_order(self, name: str) -> tuple[int, str]:
        return -_ITEM_BYTES[self.headers[name][0]], name

    def _checked_end(self) -> int:
        """One tensor begins where another ends."""
        end = 0
        for name in self.names:
            if self.places[name].begin != end:
                raise SafetensorsError(f"{name} overlaps another tensor, or leaves a gap")
            end = self.places[name].end
        return end


def parse_header(text: bytes) -> tuple[Mapping[str, str], TensorTable]:
    """Metadata and tensors.

    Where the metadata come first, as writers put them, the rest is parsed and checked once: adapters of one kind differ in
    their metadata alone.

    Raises:
        SafetensorsError: it is no header, or says what cannot be.
    """
    try:
        return _parse(text.decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SafetensorsError(f"its header is not JSON: {error}") from error
    except SafetensorsError:
        raise
    except ValueError as error:  # numbers of thousands of digits
        raise SafetensorsError(f"its header cannot be read: {error}") from error


def parse_whole(text: str) -> tuple[Mapping[str, str], TensorTable]:
    """The slow, obvious way; nothing is remembered.

    Raises:
        SafetensorsError, ValueError, RecursionError: as `parse_header`, before it says so.
    """
    entries = _object(text)
    metadata = _metadata(entries.pop(METADATA, {}))
    return metadata, TensorTable(entries)


def _parse(text: str) -> tuple[Mapping[str, str], TensorTable]:
    if not text.startswith(_METADATA_FIRST):
        return parse_whole(text)
    metadata, end = _DECODER.raw_decode(text, len(_METADATA_FIRST) - 1)
    if not text.startswith(',"', end):
        return parse_whole(text)
    rest = "{" + text[end + 1 :]
    return _metadata(metadata), _remembered(rest) if len(rest) <= _MAX_REMEMBERED_LENGTH else _table(rest)


def _table(text: str) -> TensorTable:
    entries = _object(text)
    if METADATA in entries:
        raise SafetensorsError("its header has a key twice")
    return TensorTable(entries)


_remembered: Final = lru_cache(_MAX_REMEMBERED)(_table)


def _object(text: str) -> dict[str, Any]:
    entries = json.loads(text, object_pairs_hook=_without_duplicates)
    if not isinstance(entries, dict):
        raise SafetensorsError("its header is not a JSON object")
    return entries


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise SafetensorsError("its header has a key twice")
    return entries


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_without_duplicates)


def _metadata(entry: Any) -> Mapping[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise SafetensorsError("its metadata are not strings")
    return entry


def _place(name: str, entry: Any) -> Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise SafetensorsError(f"{name} has no dtype, shape and data_offsets, or more than these")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise SafetensorsError(f"{name} is of type {dtype!r}, which is not read here")
    if not _are_sizes(shape) or len(shape) > _MAX_AXES:
        raise SafetensorsError(f"{name} has no shape that a tensor can have")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise SafetensorsError(f"{name} has no place that a tensor can have")
    first, last = offsets
    if last - first != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise SafetensorsError(f"{name} is not where its header says")
    return Place((dtype, tuple(shape)), first, last)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < _MAX_SIZE for size in value)
