"""Fp8Matrix: E4M3 codes and a scale a row or a block, as `builder/manifest.py` lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch

from trierarch.python_backend.executors.torch.row_codes import as_bytes


@dataclass(frozen=True, slots=True)
class Fp8Matrix:
    """A linear weight; an element is scale * code.

    Experts stand one behind the other on one more leading axis, until `unbind` parts them.
    """

    codes: torch.Tensor  # (out_features, in_features) float8_e4m3fn
    scales: torch.Tensor  # (out_features) float32, or one a block
    block: tuple[int, int] | None = None
    """Rows and inputs that share a scale, but for smaller blocks at the ends; None where a row has one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(out_features, in_features)."""
        return tuple(self.codes.shape)

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The elements, (out_features, in_features), worked out in float32."""
        return (self.codes.float() * self._spread_scales()).to(dtype)

    def unbind(self) -> list[Fp8Matrix]:
        """Each expert's own matrix."""
        pairs = zip(self.codes.unbind(), self.scales.unbind(), strict=True)
        return [Fp8Matrix(codes, scales, self.block) for codes, scales in pairs]

    def rows(self, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Some rows of the elements. indices: (n) int64 → (n, in_features)."""
        codes = as_bytes(self.codes)[indices].view(self.codes.dtype)
        if self.block is None:
            return Fp8Matrix(codes, self.scales[indices]).dequantize(dtype)
        num_rows, num_inputs = self.block
        return Fp8Matrix(codes, self.scales[indices // num_rows], (1, num_inputs)).dequantize(dtype)

    def cut(self, axis: int, spans: Sequence[tuple[int, int]]) -> Fp8Matrix:
        """Runs of rows (axis -2) or inputs (-1), one behind the other. Blocks that a run would cut become smaller ones.

        spans: (begin, end) of each, ascending.
        """
        if self.block is None:
            scales = self.scales if axis == -1 else _joined(self.scales, -1, spans)
            return Fp8Matrix(_joined(self.codes, axis, spans), scales)
        size = self.codes.shape[axis]
        per = gcd(self.block[axis], *(place for span in spans for place in span if place != size))
        scales = self.scales.repeat_interleave(self.block[axis] // per, axis)
        block = (per, self.block[1]) if axis == -2 else (self.block[0], per)
        in_blocks = [(begin // per, -(-end // per)) for begin, end in spans]
        return Fp8Matrix(_joined(self.codes, axis, spans), _joined(scales, axis, in_blocks), block)

    def _spread_scales(self) -> torch.Tensor:
        """That of each element, or of each row. (..., out_features, in_features or 1)."""
        if self.block is None:
            return self.scales[..., None]
        out_features, in_features = self.codes.shape[-2:]
        by_rows = self.scales.repeat_interleave(self.block[0], -2)[..., :out_features, :]
        return by_rows.repeat_interleave(self.block[1], -1)[..., :in_features]


def _joined(values: torch.Tensor, axis: int, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    pieces = [values.narrow(axis, begin, end - begin) for begin, end in spans]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)
