"""Fp8Matrix: E4M3 codes and a scale a row, as `builder/manifest.py` lays them out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trierarch.python_backend.executors.torch.row_codes import as_bytes


@dataclass(frozen=True, slots=True)
class Fp8Matrix:
    """A linear weight; an element is scale * code.

    Experts stand one behind the other on one more leading axis, until `unbind` parts them.
    """

    codes: torch.Tensor  # (out_features, in_features) float8_e4m3fn
    scales: torch.Tensor  # (out_features) float32

    @property
    def shape(self) -> tuple[int, ...]:
        """(out_features, in_features)."""
        return tuple(self.codes.shape)

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The elements, (out_features, in_features), worked out in float32."""
        return (self.codes.float() * self.scales[..., None]).to(dtype)

    def unbind(self) -> list[Fp8Matrix]:
        """Each expert's own matrix."""
        return [Fp8Matrix(*one) for one in zip(self.codes.unbind(), self.scales.unbind(), strict=True)]

    def rows(self, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Some rows of the elements. indices: (n) int64 → (n, in_features)."""
        codes = as_bytes(self.codes)[indices].view(self.codes.dtype)
        return Fp8Matrix(codes, self.scales[indices]).dequantize(dtype)
