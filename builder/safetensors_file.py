"""SafetensorsFile: an open safetensors file, whose header is believed only as far as it was checked.

Format: 8 bytes of little-endian header length, a JSON header, the tensors' bytes without gaps (safetensors' own
description). Nothing here imports torch; bfloat16 comes as its bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from trierarch.builder.errors import ResourceError

Array = npt.NDArray[Any]
Header = tuple[str, tuple[int, ...]]
"""A tensor's type, as safetensors names it, and its shape."""

DTYPES: Final[Mapping[str, npt.DTypeLike]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
MAX_HEADER_BYTES: Final = 16 << 20
"""Some hundred thousand tensors; far below what would exhaust memory."""
_MAX_AXES: Final = 8
_MAX_SIZE: Final = 1 << 48
_LENGTH_BYTES: Final = 8
_READ_BYTES: Final = 1 << 20
_METADATA: Final = "__metadata__"
_ALIGNMENT: Final = 64
_ITEM_BYTES: Final = {name: np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}
_WRITTEN: Final = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.uint16): "BF16"}


class SafetensorsError(ValueError):
    """Not a safetensors file, or a damaged one. Whoever opened it says what that means, and what to do."""


@dataclass(frozen=True, slots=True)
class _Place:
    header: Header
    begin: int
    """First byte in the file."""


class SafetensorsFile:
    """An open file. It stays the file that was opened, whatever is renamed, deleted or written beside it later."""

    def __init__(self, path: Path, directory: int | None = None) -> None:
        """Open it, relative to the open `directory` if given, and read the header alone.

        Raises:
            OSError: it is not there, may not be read, or is no regular file.
            SafetensorsError: the header is none, or says what cannot be.
        """
        self._descriptor = open_regular(path, directory)
        try:
            self.num_bytes: int = os.fstat(self._descriptor).st_size
            self.metadata: Mapping[str, str]
            self.metadata, self._places = self._read_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Of a `with`, which closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Give the descriptor back; what was mapped or read stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def headers(self) -> dict[str, Header]:
        """Name -> type and shape of every tensor."""
        return {name: place.header for name, place in self._places.items()}

    def map(self) -> dict[str, Array]:
        """Every tensor as a read-only view of the mapped file. Only of files that nobody cuts short: that would be SIGBUS."""
        return self.arrays(mmap.mmap(self._descriptor, self.num_bytes, access=mmap.ACCESS_READ))

    def read(self) -> bytearray:
        """The whole file, as long as it was when it was opened.

        Raises:
            OSError: the disk does not give it.
            SafetensorsError: it was cut short since.
        """
        content = bytearray(self.num_bytes)
        read_into(self._descriptor, memoryview(content), 0)
        return content

    def hashed(self, digest: hashlib._Hash) -> hashlib._Hash:
        """`digest`, updated with the whole file.

        Raises:
            OSError, SafetensorsError: as `read`.
        """
        piece = memoryview(bytearray(min(self.num_bytes, _READ_BYTES)))
        for begin in range(0, self.num_bytes, _READ_BYTES):
            part = piece[: self.num_bytes - begin]
            read_into(self._descriptor, part, begin)
            digest.update(part)
        return digest

    def arrays(self, content: bytearray | mmap.mmap) -> dict[str, Array]:
        """Every tensor as a read-only view of `content`, which `read` or a mapping gave; one that lies askew as a copy."""
        return {name: _view(content, place) for name, place in self._places.items()}

    def _read_header(self) -> tuple[Mapping[str, str], dict[str, _Place]]:
        length = bytearray(_LENGTH_BYTES)
        read_into(self._descriptor, memoryview(length), 0)
        header_bytes = int.from_bytes(length, "little")
        begin = _LENGTH_BYTES + header_bytes
        if begin > self.num_bytes:
            raise SafetensorsError("its header is cut short")
        if header_bytes > MAX_HEADER_BYTES:
            raise SafetensorsError(f"its header has {header_bytes} bytes: at most {MAX_HEADER_BYTES} are read")
        text = bytearray(header_bytes)
        read_into(self._descriptor, memoryview(text), _LENGTH_BYTES)
        try:
            entries = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise SafetensorsError(f"its header is not JSON: {error}") from error
        except SafetensorsError:
            raise
        except ValueError as error:  # numbers of thousands of digits
            raise SafetensorsError(f"its header cannot be read: {error}") from error
        if not isinstance(entries, dict):
            raise SafetensorsError("its header is not a JSON object")
        metadata = _metadata(entries.pop(_METADATA, {}))
        places = {name: _place(name, entry, begin) for name, entry in entries.items()}
        _check_whole(places, begin, self.num_bytes)
        return metadata, places


def open_regular(path: Path, directory: int | None = None) -> int:
    """A descriptor of a regular file, relative to the open `directory` if given; a pipe or a device never makes it wait.

    Raises:
        OSError: it is not there, may not be read, or is something else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path.name} is not a regular file")
    return descriptor


def read_into(descriptor: int, content: memoryview, offset: int) -> None:
    """Fill `content` from byte `offset` on.

    Raises:
        OSError: the disk does not give it.
        SafetensorsError: the file ends before.
    """
    while content:
        count = os.preadv(descriptor, [content], offset)
        if count == 0:
            raise SafetensorsError("it is cut short")
        content, offset = content[count:], offset + count


def write_safetensors(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write float32, float16 and uint16 (bits of bfloat16) arrays; a file at `path` is replaced at the last moment.

    Equal arrays and metadata give equal bytes.

    Raises:
        ResourceError: the disk is full or cannot be written.
    """
    ordered = {name: arrays[name] for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.writing")
    try:
        with temporary.open("xb") as file:
            file.write(_header(ordered, metadata))
            for array in ordered.values():
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written ({error.strerror or error}); free some space or choose another directory"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _header(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {_METADATA: dict(metadata)}
    begin = 0
    for name, array in arrays.items():
        end = begin + array.nbytes
        entries[name] = {"dtype": _WRITTEN[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(_LENGTH_BYTES + len(header)) % _ALIGNMENT)
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise SafetensorsError("its header has a key twice")
    return entries


def _metadata(entry: Any) -> Mapping[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise SafetensorsError("its metadata are not strings")
    return entry


def _place(name: str, entry: Any, begin: int) -> _Place:
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
    return _Place((dtype, tuple(shape)), begin + first)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < _MAX_SIZE for size in value)


def _check_whole(places: Mapping[str, _Place], begin: int, num_bytes: int) -> None:
    """One tensor begins where another ends, and the last ends with the file."""
    end = begin
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, _num_bytes(item[1]))):
        if place.begin != end:
            raise SafetensorsError(f"{name} overlaps another tensor, or leaves a gap")
        end += _num_bytes(place)
    if end != num_bytes:
        raise SafetensorsError(f"it has {num_bytes} bytes, and its header speaks of {end}")


def _num_bytes(place: _Place) -> int:
    dtype, shape = place.header
    return math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize


def _view(content: bytearray | mmap.mmap, place: _Place) -> Array:
    dtype, shape = place.header
    flat: Array = np.frombuffer(content, DTYPES[dtype], math.prod(shape), place.begin)
    array: Array = np.require(flat, requirements=["A"]).reshape(shape)
    array.flags.writeable = False
    return array


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
