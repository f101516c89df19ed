"""Codes: the tensors that store quantised rows, as `builder/manifest.py` lays them out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trierarch.builder.manifest import WeightType

Block = tuple[int, int]
"""Rows and inputs of a piece of a matrix that shares one fp8 scale; pieces at the ends of a matrix may be smaller."""


@dataclass(frozen=True, slots=True)
class CodeType:
    """What the codes of a stored tensor are."""

    weights: WeightType
    """INT8, INT4 or FP8."""
    block: Block | None = None
    """Of fp8 whose scales come in blocks; None where a row has one."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Rows of a matrix as codes; an element is scale * code, plus the group's offset where there is one."""

    codes: torch.Tensor  # int8 or fp8: (rows, in_features) int8 or float8_e4m3fn; int4: (rows, in_features / 2) uint8
    scales: torch.Tensor  # (rows, in_features / GROUP_SIZE) float16; fp8: (rows) or one a block, float32
    offsets: torch.Tensor | None  # likewise; int4 only

    def rows(self, indices: torch.Tensor) -> Codes:
        """Some rows, of what has scales of rows. indices: (n) int64."""
        offsets = None if self.offsets is None else self.offsets[indices]
        return Codes(self.codes[indices], self.scales[indices], offsets)


def num_blocks(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """How many of them cover a matrix, or each of several: (..., rows, inputs) → (..., rows, inputs) in blocks."""
    *more, rows, inputs = shape
    return *more, -(-rows // block[0]), -(-inputs // block[1])


def pack_nibbles(nibbles: torch.Tensor) -> torch.Tensor:
    """nibbles: (..., n) uint8 of 0 to 15 → (..., n / 2) uint8, the first of each two in the low half."""
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4
