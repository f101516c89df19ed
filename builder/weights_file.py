"""Writing `weights.safetensors` as a stream: header first, then each tensor as it is read, hashed on the way.

Format: 8 bytes of little-endian header length, a JSON header, the bytes without gaps (safetensors' own description).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from trierarch.builder.checkpoint import Checkpoint
from trierarch.builder.manifest import FileDigest
from trierarch.builder.progress import Progress
from trierarch.builder.weights import Weight

ALIGNMENT: Final = 64
"""Bytes of a cache line and of the widest vector register."""
_WRITE_BYTES: Final = 16 << 20


def file_size(weights: Sequence[Weight]) -> int:
    """Bytes that `write_weights` will write."""
    return len(_header(_ordered(weights))) + sum(weight.num_bytes for weight in weights)


def write_weights(
    path: Path, weights: Sequence[Weight], checkpoint: Checkpoint, progress: Progress, stage: str = "weights"
) -> FileDigest:
    """Write every weight; equal weights give equal bytes. `stage` is what `progress` calls it.

    Raises:
        CheckpointError: a tensor cannot be read.
        ConfigError: a tensor cannot be quantised.
        OSError: the file cannot be written.
    """
    ordered = _ordered(weights)
    progress.stage(stage, file_size(weights))
    digest = hashlib.sha256()
    num_bytes = 0
    with path.open("wb") as file:

        def write(piece: bytes | memoryview) -> None:
            nonlocal num_bytes
            file.write(piece)
            digest.update(piece)
            num_bytes += len(piece)
            progress.advance(len(piece))

        write(_header(ordered))
        for weight in ordered:
            for part in weight.parts(checkpoint):
                content = part.reshape(-1).view(torch.uint8).numpy().data
                for start in range(0, len(content), _WRITE_BYTES):
                    write(content[start : start + _WRITE_BYTES])
        file.flush()
        os.fsync(file.fileno())
    return FileDigest(num_bytes=num_bytes, sha256=digest.hexdigest())


def _ordered(weights: Sequence[Weight]) -> list[Weight]:
    """By the power of two that divides a weight's tensors, falling: each starts on its own, all but a few on ALIGNMENT."""
    return sorted(weights, key=_alignment, reverse=True)


def _alignment(weight: Weight) -> int:
    sizes = [entry.num_bytes for entry in weight.entries]
    return min(ALIGNMENT, *(size & -size for size in sizes))


def _header(ordered: Sequence[Weight]) -> bytes:
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
