"""SafetensorsFile: an open safetensors file, whose header is believed only as far as it was checked.

Format: 8 bytes of little-endian header length, the header (safetensors_header.py), the tensors' bytes. Nothing here imports
torch; bfloat16 comes as its bits.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np

from trierarch.builder.errors import ResourceError
from trierarch.builder.safetensors_header import METADATA, Header, SafetensorsError, TensorTable, parse_header
from trierarch.builder.tensors import WRITTEN, Array, Tensors

MAX_HEADER_BYTES: Final = 16 << 20
"""Some hundred thousand tensors; far below what would exhaust memory."""
_LENGTH_BYTES: Final = 8
_READ_BYTES: Final = 1 << 20
_ALIGNMENT: Final = 64


class FileIdentity(NamedTuple):
    """What tells a file, as it is now, from any other, and from itself once somebody wrote to it."""

    device: int
    inode: int
    num_bytes: int
    modified_ns: int
    changed_ns: int


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
            self.opened: FileIdentity = self.identity
            self.num_bytes: int = self.opened.num_bytes
            self.metadata: Mapping[str, str]
            self.table: TensorTable
            self.metadata, self.table, self._begin = self._read_header()
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
    def headers(self) -> Mapping[str, Header]:
        """Name -> type and shape of every tensor."""
        return self.table.headers

    @property
    def identity(self) -> FileIdentity:
        """As it is now."""
        found = os.fstat(self._descriptor)
        return FileIdentity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def map(self) -> Tensors:
        """The mapped file. Only of files that nobody cuts short: that would be SIGBUS."""
        return self.tensors(mmap.mmap(self._descriptor, self.num_bytes, access=mmap.ACCESS_READ))

    def read(self) -> bytearray:
        """The whole file, as long as it was when it was opened.

        Raises:
            OSError: the disk does not give it.
            SafetensorsError: it was cut short since.
        """
        content = bytearray(self.num_bytes)
        read_into(self._descriptor, memoryview(content), 0)
        return content

    def read_tensors(self) -> Tensors:
        """The tensors alone.

        Raises:
            OSError, SafetensorsError: as `read`.
        """
        content = np.empty(self.table.num_bytes, np.uint8)  # not filled before, as a bytearray would be
        read_into(self._descriptor, content.data, self._begin)
        return Tensors(self.table, content)

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

    def tensors(self, content: bytearray | mmap.mmap) -> Tensors:
        """Those in `content`, which `read` or a mapping gave."""
        return Tensors(self.table, content, self._begin)

    def _read_header(self) -> tuple[Mapping[str, str], TensorTable, int]:
        """Metadata, tensors, and where their bytes begin."""
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
        metadata, table = parse_header(bytes(text))
        if begin + table.num_bytes != self.num_bytes:
            raise SafetensorsError(f"it has {self.num_bytes} bytes, and its header speaks of {begin + table.num_bytes}")
        return metadata, table, begin


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
    ordered = {name: arrays[name] for name in written_order(arrays)}
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


def written_order(arrays: Mapping[str, Array]) -> list[str]:
    """Names as `write_safetensors` lays them: larger elements first, so that none lies askew."""
    return sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))


def _header(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {METADATA: dict(metadata)}
    begin = 0
    for name, array in arrays.items():
        end = begin + array.nbytes
        entries[name] = {"dtype": WRITTEN[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(_LENGTH_BYTES + len(header)) % _ALIGNMENT)
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
