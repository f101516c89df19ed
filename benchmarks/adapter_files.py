"""Adapters of no use but to be computed with: random weights of any rank, as many as are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trierarch.builder.adapter import (
    ADAPTER_SUFFIX,
    LAYER_PIECES,
    AdapterManifest,
    AdapterTensors,
    Array,
    piece_names,
    piece_shape,
)
from trierarch.builder.manifest import DType, EngineManifest
from trierarch.builder.packed_adapter import digest_of, write_packed


def write_adapters(directory: Path, manifest: EngineManifest, ranks: Mapping[str, int], seed: int) -> None:
    """Write an adapter of all linear layers for each name, of its rank; no two are equal."""
    noise: dict[int, dict[str, Array]] = {}
    for index, (name, rank) in enumerate(ranks.items()):
        if rank not in noise:
            noise[rank] = _random_arrays(manifest, rank, seed + rank)
        arrays = dict(noise[rank])
        first = next(iter(arrays))
        arrays[first] = arrays[first].copy()
        arrays[first].flat[: index % rank + 1] = arrays[first].flat[index : index + index % rank + 1]
        arrays[first].flat[-1] = np.array(index, arrays[first].dtype)  # small, and what makes it its own
        tensors = AdapterTensors(_manifest(manifest, arrays, rank), arrays)
        write_packed(tensors, directory / f"{name}{ADAPTER_SUFFIX}")


def _manifest(manifest: EngineManifest, arrays: Mapping[str, Array], rank: int) -> AdapterManifest:
    return AdapterManifest(
        digest=digest_of(arrays), rank=rank, dtype=manifest.dtype, pieces=LAYER_PIECES, source="benchmark"
    )


def _random_arrays(manifest: EngineManifest, rank: int, seed: int) -> dict[str, Array]:
    chance = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for name, piece in piece_names(manifest.architecture):
        if piece in LAYER_PIECES:
            out_features, in_features = piece_shape(manifest.architecture, piece)
            for side, shape in (("a", (rank, in_features)), ("b", (out_features, rank))):
                numbers = (chance.standard_normal(shape) * 0.02).astype(np.float32)
                is_short = manifest.dtype is DType.BFLOAT16
                arrays[f"{name}.{side}"] = (numbers.view(np.uint32) >> 16).astype(np.uint16) if is_short else numbers
    return arrays
