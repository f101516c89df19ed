"""TorchAdapter: an adapter's weights as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trierarch.builder.adapter import STACKED, AdapterTensors, piece_shape
from trierarch.builder.manifest import Architecture
from trierarch.builder.tensors import Array


@dataclass(frozen=True, slots=True)
class TorchPiece:
    """Rows of a stacked matrix, and what is done to them: gain * (W x) + b (a x)."""

    first: int
    end: int
    a: torch.Tensor  # (r, in)
    b: torch.Tensor  # (end - first, r)
    gain: torch.Tensor | None  # (end - first) float32; None is 1


class TorchAdapter:
    """All of an adapter on a device. Implements Arranged."""

    def __init__(self, architecture: Architecture, tensors: AdapterTensors, device: torch.device) -> None:
        """Copy an adapter that was checked against the engine to `device`."""
        arrays = {name: _tensor(array, device) for name, array in tensors.arrays.items()}
        self.device = device
        self.num_bytes = sum(tensor.nbytes for tensor in arrays.values())
        self.pieces: Mapping[str, Sequence[TorchPiece]] = {
            prefix + stacked: _pieces(architecture, arrays, prefix, stacked)
            for prefix in ("", *(f"layers.{index}." for index in range(architecture.num_layers)))
            for stacked in STACKED
        }
        """A matrix of the engine -> what is adapted of it."""
        self.lm_head = arrays.get("lm_head.weight")
        self.embedding = arrays.get("embed.weight")
        self.embedding_piece = (arrays["embed.a"], arrays["embed.b"]) if "embed.a" in arrays else None


def _pieces(
    architecture: Architecture, arrays: Mapping[str, torch.Tensor], prefix: str, stacked: str
) -> list[TorchPiece]:
    pieces = []
    first = 0
    for piece in STACKED[stacked]:
        end = first + piece_shape(architecture, piece)[0]
        name = prefix + piece
        if f"{name}.a" in arrays:
            pieces.append(TorchPiece(first, end, arrays[f"{name}.a"], arrays[f"{name}.b"], arrays.get(f"{name}.gain")))
        first = end
    return pieces


def _tensor(array: Array, device: torch.device) -> torch.Tensor:
    """A copy; the bits of bfloat16 become bfloat16."""
    tensor = torch.from_numpy(np.array(array))
    return (tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor).to(device)
