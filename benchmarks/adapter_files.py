"""Adapters of no use but to be computed with: random weights of any rank, as many as are wanted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

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
from trierarch.builder.peft import WEIGHTS_FILE_NAME
from trierarch.builder.peft_config import CONFIG_NAME
from trierarch.builder.safetensors_file import write_safetensors
from trierarch.builder.tensors import Array

_MODULES: Final = {
    **{piece: f"self_attn.{piece}_proj" for piece in ("q", "k", "v", "o")},
    **{piece: f"mlp.{piece}_proj" for piece in ("gate", "up", "down")},
}
"""Piece -> its module in the demo's family."""


def write_adapters(directory: Path, manifest: EngineManifest, ranks: Mapping[str, int], seed: int) -> None:
    """Write an adapter of all linear layers for each name, of its rank. Of one rank they differ in their first row alone."""
    for name, arrays in _adapters(manifest, ranks, seed):
        packed = AdapterTensors(manifest_of(arrays, manifest, "benchmark"), arrays)
        write_packed(packed, directory / f"{name}{ADAPTER_SUFFIX}")


def write_peft_adapters(directory: Path, manifest: EngineManifest, ranks: Mapping[str, int], seed: int) -> None:
    """The same as PEFT saves them, a directory for each name: for rivals, which read nothing else."""
    for name, arrays in _adapters(manifest, ranks, seed):
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": ranks[name],
            "lora_alpha": ranks[name],  # over r it is the scale, which is in b already
            "bias": "none",
            "target_modules": sorted({module.rpartition(".")[2] for module in _MODULES.values()}),
        }
        (directory / name).mkdir()
        (directory / name / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
        tensors = {_peft_name(tensor): array for tensor, array in arrays.items()}
        write_safetensors(directory / name / WEIGHTS_FILE_NAME, tensors, {"format": "pt"})


def _adapters(
    manifest: EngineManifest, ranks: Mapping[str, int], seed: int
) -> Iterator[tuple[str, Mapping[str, Array]]]:
    noise = {rank: _random_arrays(manifest, rank, seed + rank) for rank in set(ranks.values())}
    for index, (name, rank) in enumerate(ranks.items()):
        arrays = dict(noise[rank])
        first = next(iter(arrays))
        arrays[first] = arrays[first].copy()
        arrays[first][0] = np.roll(arrays[first][0], index % arrays[first].shape[1])
        arrays[first][0, 0] = rounded_to(np.array([index / 1e5], np.float32), manifest.dtype)[0]
        yield name, arrays


def _peft_name(tensor: str) -> str:
    """Of `layers.{i}.{piece}.{part}`."""
    _, layer, piece, part = tensor.split(".")
    return f"base_model.model.model.layers.{layer}.{_MODULES[piece]}.lora_{part.upper()}.weight"


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
