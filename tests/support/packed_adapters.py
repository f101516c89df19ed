"""Packed adapters with random numbers, for any engine; no PEFT."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from trierarch.builder.adapter import (
    LAYER_PIECES,
    AdapterTensors,
    piece_names,
    piece_shape,
    rounded_to,
)
from trierarch.builder.adapter_check import manifest_of
from trierarch.builder.manifest import WEIGHTS_NAME, DType, EngineManifest, FileDigest, Lora
from trierarch.builder.packed_adapter import PackedAdapter, write_packed
from trierarch.builder.tensors import Array
from trierarch.builder.verify import digest_file


def taking_adapters(manifest: EngineManifest, engine: Path | None = None, **lora: int) -> EngineManifest:
    """The same engine, taking adapters; the digest of its weights is that of `engine`'s, if given."""
    weights = FileDigest(num_bytes=0, sha256="0" * 64) if engine is None else digest_file(engine / WEIGHTS_NAME)
    files = {**manifest.files, WEIGHTS_NAME: weights}
    return manifest.model_copy(update={"lora": Lora(**lora), "files": files})


def random_packed(
    manifest: EngineManifest,
    *,
    rank: int = 4,
    pieces: Collection[str] = LAYER_PIECES,
    whole: Collection[str] = (),
    is_dora: bool = False,
    seed: int = 0,
    strength: float = 1.0,
    source: str = "random",
) -> AdapterTensors:
    """Adapts `pieces` in every layer, and has `whole` of embed and lm_head whole.

    Each matrix changes by about `strength` times what keeps activations near 1; gains are within a fifth of 1.
    """
    generator = np.random.default_rng(seed)

    def noise(shape: tuple[int, ...], size: float, dtype: DType = manifest.dtype) -> Array:
        return rounded_to(generator.standard_normal(shape, np.float32) * np.float32(size), dtype)

    arrays: dict[str, Array] = {}
    for stem, piece in piece_names(manifest.architecture):
        out_size, in_size = piece_shape(manifest.architecture, piece)
        if piece in whole:
            arrays[f"{stem}.weight"] = noise((in_size, out_size) if piece == "embed" else (out_size, in_size), 0.2)
        elif piece in pieces:
            arrays[f"{stem}.a"] = noise((in_size, rank) if piece == "embed" else (rank, in_size), in_size**-0.5)
            arrays[f"{stem}.b"] = noise((out_size, rank), strength * rank**-0.5)
            if is_dora and piece != "embed":
                arrays[f"{stem}.gain"] = 1 + noise((out_size,), 0.07, DType.FLOAT32).clip(-0.2, 0.2)
    return AdapterTensors(manifest_of(arrays, manifest, source, is_dora=is_dora), arrays)


def write_random_packed(directory: Path, name: str, manifest: EngineManifest, **options: Any) -> AdapterTensors:
    """Write `random_packed` into a directory of adapters."""
    tensors = random_packed(manifest, **options)
    write_packed(tensors, directory / f"{name}.safetensors")
    return tensors


def load_packed(path: Path) -> AdapterTensors:
    """A packed file in memory, its digest verified."""
    packed = PackedAdapter(path)
    try:
        return packed.read()
    finally:
        packed.close()
