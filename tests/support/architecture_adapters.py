"""Packed adapters with random weights, straight from an Architecture: no checkpoint, no PEFT."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np

from trierarch.builder.adapter import PIECES, AdapterManifest, AdapterTensors, Array, piece_names, piece_shape
from trierarch.builder.manifest import Architecture, DType


def random_packed(
    architecture: Architecture,
    dtype: DType = DType.FLOAT32,
    *,
    rank: int = 4,
    seed: int = 0,
    pieces: Collection[str] = PIECES,
    whole: Collection[str] = (),
    is_dora: bool = False,
) -> AdapterTensors:
    """Every piece of `pieces` at `rank`, of a size that moves outputs visibly. whole: of lm_head and embed, replaced."""
    chance = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}

    def noise(*shape: int) -> Array:
        size = shape[-1] ** -0.5
        numbers = chance.standard_normal(shape).astype(np.float32) * np.float32(size)
        return _to_bits(numbers) if dtype is DType.BFLOAT16 else numbers

    for name, piece in piece_names(architecture):
        if piece not in pieces:
            continue
        out_features, in_features = piece_shape(architecture, piece)
        if piece in whole:
            arrays[f"{name}.weight"] = noise(architecture.vocab_size, architecture.hidden_size)
        elif piece == "embed":
            arrays |= {"embed.a": noise(in_features, rank), "embed.b": noise(out_features, rank)}
        else:
            arrays |= {f"{name}.a": noise(rank, in_features), f"{name}.b": noise(out_features, rank)}
            if is_dora:
                arrays[f"{name}.gain"] = (0.5 + chance.random(out_features)).astype(np.float32)
    digest = hashlib.sha256(b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays))).hexdigest()
    manifest = AdapterManifest(
        digest=digest,
        rank=rank,
        dtype=dtype,
        pieces=tuple(piece for piece in PIECES if piece in pieces),
        is_dora=is_dora,
        source="random",
    )
    return AdapterTensors(manifest, arrays)


def _to_bits(numbers: Array) -> Array:
    """Rounded to the nearest bfloat16, ties to even."""
    words = numbers.view(np.uint32)
    return ((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype(np.uint16)
