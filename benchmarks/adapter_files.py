"""Adapters of no use but to be computed with: random weights of any rank, as many as are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trierarch.builder.adapter import (
    ADAPTER_SUFFIX,
    LAYER_PIECES,
    AdapterTensors,
    piece_names,
    piece_shape,
    rounded_to,
)
from trierarch.builder.adapter_check import manifest_of
from trierarch.builder.manifest import EngineManifest
from trierarch.builder.packed_adapter import write_packed
from trierarch.builder.tensors import Array


def write_adapters(directory: Path, manifest: EngineManifest, ranks: Mapping[str, int], seed: int) -> None:
    """Write an adapter of all linear layers for each name, of its rank. Of one rank they differ in their first row alone."""
    noise = {rank: _random_arrays(manifest, rank, seed + rank) for rank in set(ranks.values())}
    for index, (name, rank) in enumerate(ranks.items()):
        arrays = dict(noise[rank])
        first = next(iter(arrays))
        arrays[first] = arrays[first].copy()
        arrays[first][0] = np.roll(arrays[first][0], index % arrays[first].shape[1])
        arrays[first][0, 0] = rounded_to(np.array([index / 1e5], np.float32), manifest.dtype)[0]
        write_packed(
            AdapterTensors(manifest_of(arrays, manifest, "benchmark"), arrays), directory / f"{name}{ADAPTER_SUFFIX}"
        )


def _random_arrays(manifest: EngineManifest, rank: int, seed: int) -> dict[str, Array]:
    chance = np.random.default_rng(seed)

    def noise(*shape: int) -> Array:
        return rounded_to(chance.standard_normal(shape, np.float32) * np.float32(0.02), manifest.dtype)

    arrays: dict[str, Array] = {}
    for name, piece in piece_names(manifest.architecture):
        if piece in LAYER_PIECES:
            out_features, in_features = piece_shape(manifest.architecture, piece)
            arrays |= {f"{name}.a": noise(rank, in_features), f"{name}.b": noise(out_features, rank)}
    return arrays
