"""QuantizedMatrix: integer codes and the scales that make them numbers, as `builder/manifest.py` lays them out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trierarch.builder.manifest import GROUP_SIZE


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A linear weight; an element is scale * code, plus the group's offset where there is one.

    Experts stand one behind the other on one more leading axis, until `unbind` parts them.
    """

    codes: torch.Tensor  # int8: (out_features, in_features) int8; int4: (out_features, in_features / 2) uint8
    scales: torch.Tensor  # (out_features, in_features / GROUP_SIZE) float16
    offsets: torch.Tensor | None  # likewise; int4 only

    @property
    def bits(self) -> int:
        """Of a code: 8 or 4."""
        return 8 if self.offsets is None else 4

    @property
    def shape(self) -> tuple[int, ...]:
        """(out_features, in_features)."""
        return *self.scales.shape[:-1], self.scales.shape[-1] * GROUP_SIZE

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The elements, (out_features, in_features), worked out in float32."""
        return _dequantize(self.codes, self.scales, self.offsets).to(dtype)

    def unbind(self) -> list[QuantizedMatrix]:
        """Each expert's own matrix."""
        offsets = [None] * len(self.codes) if self.offsets is None else self.offsets.unbind()
        return [QuantizedMatrix(*one) for one in zip(self.codes.unbind(), self.scales.unbind(), offsets, strict=True)]

    def rows(self, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Some rows of the elements. indices: (n) int64 → (n, in_features)."""
        offsets = None if self.offsets is None else self.offsets[indices]
        return _dequantize(self.codes[indices], self.scales[indices], offsets).to(dtype)


def _dequantize(codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None) -> torch.Tensor:
    groups = (*scales.shape, GROUP_SIZE)
    if offsets is None:
        return (codes.float().view(groups) * scales.float()[..., None]).flatten(-2)
    nibbles = torch.stack((codes & 15, codes >> 4), -1)
    return (nibbles.float().view(groups) * scales.float()[..., None] + offsets.float()[..., None]).flatten(-2)
