"""A rank's part of an adapter, cut as the matrices that it adapts are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.tensors import Array
from trierarch.python_backend.executors.parallel.shard import Shard

_BY_INPUTS = ("o", "down")
"""Pieces of whose sums a rank has a part; of the others it has some outputs."""


def shard_adapter(tensors: AdapterTensors, shard: Shard) -> AdapterTensors:
    """What the rank's own model is adapted with, by the names of its own layers."""
    return AdapterTensors(tensors.manifest, dict(_own(tensors, shard)))


def _own(tensors: AdapterTensors, shard: Shard) -> Iterator[tuple[str, Array]]:
    for name, array in tensors.arrays.items():
        *prefix, piece, kind = name.split(".")
        if piece == "embed":
            if shard.is_first:
                yield name, array
        elif not prefix:
            yield name, _taken(array, shard, piece, kind)
        elif int(prefix[1]) in shard.layers:
            yield f"layers.{int(prefix[1]) - shard.layers.start}.{piece}.{kind}", _taken(array, shard, piece, kind)


def _taken(array: Array, shard: Shard, piece: str, kind: str) -> Array:
    """kind: a (r, in), b (out, r), gain (out), or weight (out, in)."""
    begin, end = shard.piece(piece)
    if piece in _BY_INPUTS:
        return np.ascontiguousarray(array[:, begin:end]) if kind == "a" else array
    return array if kind == "a" else np.ascontiguousarray(array[begin:end])
