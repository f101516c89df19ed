"""Writing `weights.safetensors` as a stream: header first, then each tensor as it is read, hashed on the way.

Format: 8 bytes of little-endian header length, a JSON header, the bytes without gaps (safetensors' own description).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch

from trierarch.builder.checkpoint import Checkpoint
from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import FileDigest
from trierarch.builder.progress import Progress
from trierarch.builder.weight import Entry

ALIGNMENT: Final = 64
"""Bytes of a cache line and of the widest vector register."""
_WRITE_BYTES: Final = 16 << 20


class StoredTensor(Protocol):
    """One or a few tensors of a file, made from a checkpoint as they are written."""

    @property
    def num_bytes(self) -> int:
        """Of all its entries."""
        ...

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What they are stored as, in order."""
        ...

    def parts(self, checkpoint: Checkpoint) -> Iterator[torch.Tensor]:
        """Contiguous tensors whose bytes, one after the other, are those of the entries."""
        ...


class WeightsFile(Protocol):
    """The weights file of an engine that is decided, and not yet written."""

    @property
    def num_bytes(self) -> int:
        """Bytes that `write` will write."""
        ...

    def write(self, path: Path, progress: Progress, stage: str = "weights") -> FileDigest:
        """Write it; equal weights give equal bytes. `stage` is what `progress` calls it.

        Raises:
            CheckpointError: a tensor cannot be read.
            ConfigError: a tensor cannot be quantised.
            EngineError: the file to copy was altered or cannot be read.
            OSError: the file cannot be written.
        """
        ...


@dataclass(frozen=True, slots=True)
class CheckpointWeights:
    """Weights read from a checkpoint. Implements WeightsFile."""

    checkpoint: Checkpoint
    weights: Sequence[StoredTensor]

    @property
    def num_bytes(self) -> int:
        """Header included."""
        return len(_header(_ordered(self.weights))) + sum(weight.num_bytes for weight in self.weights)

    def write(self, path: Path, progress: Progress, stage: str = "weights") -> FileDigest:
        """One tensor at a time is in memory."""
        ordered = _ordered(self.weights)
        progress.stage(stage, self.num_bytes)
        return _write(path, self._pieces(ordered), progress)

    def _pieces(self, ordered: Sequence[StoredTensor]) -> Iterator[bytes | memoryview]:
        yield _header(ordered)
        for weight in ordered:
            for part in weight.parts(self.checkpoint):
                content = part.reshape(-1).view(torch.uint8).numpy().data
                for start in range(0, len(content), _WRITE_BYTES):
                    yield content[start : start + _WRITE_BYTES]


@dataclass(frozen=True, slots=True)
class CopiedWeights:
    """The weights file of an engine that is built already. Implements WeightsFile."""

    path: Path
    digest: FileDigest

    @property
    def num_bytes(self) -> int:
        """As its manifest says."""
        return self.digest.num_bytes

    def write(self, path: Path, progress: Progress, stage: str = "weights") -> FileDigest:
        """Copied, and compared with its digest on the way."""
        progress.stage(stage, self.num_bytes)
        written = _write(path, self._pieces(), progress)
        if written != self.digest:
            raise EngineError(
                f"{self.path} was altered: its SHA-256 is not the manifest's; rebuild that engine with: trierarch build"
            )
        return written

    def _pieces(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                while piece := file.read(_WRITE_BYTES):
                    yield piece
        except OSError as error:
            raise EngineError(f"{self.path} cannot be read ({error.strerror or error}); rebuild that engine") from error


def _write(path: Path, pieces: Iterable[bytes | memoryview], progress: Progress) -> FileDigest:
    digest = hashlib.sha256()
    num_bytes = 0
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            num_bytes += len(piece)
            progress.advance(len(piece))
        file.flush()
        os.fsync(file.fileno())
    return FileDigest(num_bytes=num_bytes, sha256=digest.hexdigest())


def _ordered(weights: Sequence[StoredTensor]) -> list[StoredTensor]:
    """By the power of two that divides a weight's tensors, falling: each starts on its own, all but a few on ALIGNMENT."""
    return sorted(weights, key=_alignment, reverse=True)


def _alignment(weight: StoredTensor) -> int:
    sizes = [entry.num_bytes for entry in weight.entries]
    return min(ALIGNMENT, *(size & -size for size in sizes))


def _header(ordered: Sequence[StoredTensor]) -> bytes:
    entries = {}
    begin = 0
    for weight in ordered:
        for entry in weight.entries:
            end = begin + entry.num_bytes
            entries[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [begin, end]}
            begin = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    return len(header).to_bytes(8, "little") + header
