"""PrefixFile: cached blocks on disk, so that the next process finds the prefixes that this one had computed.

    magic, length of the header (4 bytes, little end first), header in JSON
    chain keys, 16 bytes each, the block that would be evicted first at the front
    each array's blocks, in the keys' order, as the array's own layout has them without the others
    CRC-32 of keys and blocks, likewise

What adapter and which tenant's salt a block belongs to is in its key (kv/prefix_cache.py), so a file may hold those of all of
them. It holds what clients said, in another form: nobody but its owner may read it. It is written under another name and
then renamed, and what does not fit the engine byte for byte is left alone.
"""

from __future__ import annotations

import json
import logging
import math
import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trierarch.python_backend.executors.offload.block_copier import BLOCK_AXIS
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.kv.prefix_cache import KEY_BYTES

logger = logging.getLogger(__name__)

Arrays = Sequence[npt.NDArray[Any]]
"""Of keys and values: (num_layers, 2, num_blocks, ...), one behind the other in a file."""

MAGIC: Final = b"trierarch prefixes 1\n"
NAME: Final = "prefixes.kv"
_NUMBER: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class _Header:
    engine: str
    """Digest of the engine's manifest, which digests its weights and kernels."""
    block_size: int
    num_blocks: int
    shapes: list[list[int]]
    """Of each array, with `num_blocks` blocks."""
    dtypes: list[str]


class _Unusable(Exception):
    """The file is no good here; why, in words."""


class PrefixFile:
    """One engine's file, in a directory of the operator's."""

    def __init__(self, directory: Path, engine_digest: str, max_bytes: int) -> None:
        """Nothing is read or written yet. `max_bytes`: of blocks that are saved, the most recently used ones.

        engine_digest: see EngineManifest.digest.
        """
        self._path = directory / NAME
        self._engine = engine_digest
        self._max_bytes = max_bytes

    def save(self, kv: KVCacheManager, arrays: Arrays) -> int:
        """Write what the cache holds and no sequence does; how many blocks that was. A disk that is full is only logged."""
        block_bytes = sum(array.nbytes // array.shape[BLOCK_AXIS] for array in arrays)
        blocks = kv.cached_blocks()
        blocks = blocks[max(0, len(blocks) - self._max_bytes // block_bytes) :]
        if not blocks:
            return 0
        started = time.perf_counter()
        try:
            self._write(kv.block_size, [key for key, _ in blocks], [block for _, block in blocks], arrays)
        except OSError as error:
            logger.warning("the prefix cache was not saved to %s: %s", self._path, error)
            return 0
        logger.info("saved %d cached blocks in %.2f s to %s", len(blocks), time.perf_counter() - started, self._path)
        return len(blocks)

    def restore(self, kv: KVCacheManager, arrays: Arrays) -> int:
        """Fill free blocks with what was saved, and make them findable; how many. A file that is no good is only logged.

        `kv` must be new: nothing may be scheduled yet.
        """
        if not self._path.exists():
            return 0
        started = time.perf_counter()
        try:
            with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                num_restored = self._read(content, kv, arrays)
        except (OSError, ValueError, TypeError, KeyError, struct.error, _Unusable) as error:
            logger.warning("the saved prefix cache at %s is not used: %s", self._path, error)
            return 0
        logger.info("restored %d cached blocks in %.2f s", num_restored, time.perf_counter() - started)
        return num_restored

    def _write(self, block_size: int, keys: list[bytes], block_ids: list[int], arrays: Arrays) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        header = _Header(
            engine=self._engine,
            block_size=block_size,
            num_blocks=len(keys),
            shapes=[_shape(array, len(keys)) for array in arrays],
            dtypes=[array.dtype.str for array in arrays],
        )
        encoded = json.dumps(asdict(header)).encode()
        staging = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            with open(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(MAGIC + _NUMBER.pack(len(encoded)) + encoded)
                crc32 = 0
                for piece in _pieces(keys, block_ids, arrays):
                    crc32 = zlib.crc32(piece, crc32)
                    file.write(piece)
                file.write(_NUMBER.pack(crc32))
            staging.replace(self._path)
        finally:
            staging.unlink(missing_ok=True)

    def _read(self, content: mmap.mmap, kv: KVCacheManager, arrays: Arrays) -> int:
        header, start = _header(content)
        if header.engine != self._engine:
            raise _Unusable("it is of another engine")
        num_saved = header.num_blocks
        is_alike = header.shapes == [_shape(array, num_saved) for array in arrays] and header.dtypes == [
            array.dtype.str for array in arrays
        ]
        if not is_alike or header.block_size != kv.block_size:
            raise _Unusable("its blocks have another form")
        sizes = [math.prod(shape) * array.itemsize for shape, array in zip(header.shapes, arrays, strict=True)]
        end = start + num_saved * KEY_BYTES + sum(sizes)
        if len(content) != end + _NUMBER.size:
            raise _Unusable("it was cut short, or goes on behind its end")
        with memoryview(content) as view, view[start:end] as saved:
            if zlib.crc32(saved) != _NUMBER.unpack_from(content, end)[0]:
                raise _Unusable("its content was changed")
            keys = [bytes(saved[index * KEY_BYTES : (index + 1) * KEY_BYTES]) for index in range(num_saved)]
            num_kept = min(num_saved, kv.num_free_blocks)
            block_ids = kv.restore(keys[num_saved - num_kept :])
            offset = num_saved * KEY_BYTES
            for array, size in zip(arrays, sizes, strict=True):
                blocks = np.frombuffer(saved, array.dtype, size // array.itemsize, offset)
                array[:, :, block_ids] = blocks.reshape(_shape(array, num_saved))[:, :, num_saved - num_kept :]
                offset += size
                del blocks  # it exports the view
        return num_kept


def _pieces(keys: list[bytes], block_ids: list[int], arrays: Arrays) -> Iterator[bytes]:
    """What stands behind the header, a layer's keys or values at a time."""
    yield b"".join(keys)
    for array in arrays:
        for layer in array:
            for part in layer:
                yield part[block_ids].tobytes()


def _shape(array: npt.NDArray[Any], num_blocks: int) -> list[int]:
    return [*array.shape[:BLOCK_AXIS], num_blocks, *array.shape[BLOCK_AXIS + 1 :]]


def _header(content: mmap.mmap) -> tuple[_Header, int]:
    """The header, and where it ends."""
    start = len(MAGIC) + _NUMBER.size
    if content[: len(MAGIC)] != MAGIC:
        raise _Unusable("it is no file of prefixes")
    (length,) = _NUMBER.unpack_from(content, len(MAGIC))
    return _Header(**json.loads(content[start : start + length])), start + length
