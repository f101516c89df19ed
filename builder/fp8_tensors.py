"""The E4M3 tensors of a Hugging Face checkpoint: where their scales are, and what both together stand for.

An element of `X.weight` is its code times its scale, also where the scale is named for its inverse. Scales by shape, of a
weight of (rows, inputs):

    one number                 per tensor: transformers' FP8Linear without blocks, compressed-tensors' `tensor`, modelopt
    (rows) or (rows, 1)        per row: compressed-tensors' `channel`, modelopt's FP8_PER_CHANNEL_PER_TOKEN
    one a block, rounded up    FP8Linear with a block_size, compressed-tensors' `block`

Other libraries want one scale for q, k and v, or for gate and up, since they multiply them at once; here each row has one, so
that those of the stacked matrices stay what they are.

Scales of activations, keys and values that were calibrated go unused: an executor here scales each token, and each head of
its keys and values, by its own largest, which clips nothing and is at least as fine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import torch

from trierarch.builder.coded_tensor import AGAIN, SCALE_TYPES
from trierarch.builder.codes import Block, Codes, CodeType, num_blocks
from trierarch.builder.errors import CheckpointError
from trierarch.builder.manifest import WeightType
from trierarch.builder.safetensors_header import Header

_E4M3: Final = "F8_E4M3"
_SCALES: Final = ("weight_scale_inv", "weight_scale")


@dataclass(frozen=True, slots=True)
class Fp8Tensor:
    """One of them. Implements CodedTensor."""

    name: str
    shape: tuple[int, ...]
    scale: str
    """Name of the tensor of its scales."""
    block: Block | None
    """None where a row or all of it share one."""

    @property
    def code_type(self) -> CodeType:
        """Codes as they are."""
        return CodeType(WeightType.FP8, self.block)

    @property
    def parts(self) -> tuple[str, ...]:
        """Codes and scales."""
        return self.name, self.scale

    def codes(self, parts: Sequence[torch.Tensor]) -> Codes:
        """As they are, but that one scale of all becomes one a row."""
        codes, scales = parts[0], parts[1].float()
        if not scales.isfinite().all():
            raise CheckpointError(f"{self.name} has a scale that is not finite; {AGAIN}")
        if codes.isnan().any():
            raise CheckpointError(f"{self.name} holds NaN; {AGAIN}")
        if self.block is None:
            scales = scales.flatten().expand(len(codes)).contiguous()
        return Codes(codes, scales, None)

    def elements(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Each code times its scale."""
        stored = self.codes(parts)
        num_rows, num_inputs = self.shape
        if self.block is None:
            return stored.codes.float() * stored.scales[:, None]
        by_rows = stored.scales.repeat_interleave(self.block[0], 0)[:num_rows]
        return stored.codes.float() * by_rows.repeat_interleave(self.block[1], 1)[:, :num_inputs]


@dataclass(frozen=True, slots=True)
class Fp8Format:
    """Implements CodedFormat."""

    block: Block | None
    """As the checkpoint's configuration says; None where a row or a matrix has a scale."""

    @property
    def label(self) -> str:
        """With the blocks."""
        return "FP8" if self.block is None else f"FP8, {self.block[0]}x{self.block[1]} blocks"

    def find(self, headers: Mapping[str, Header]) -> Mapping[str, Fp8Tensor]:
        """All of E4M3."""
        return {name: _fp8_tensor(name, headers, self.block) for name, (dtype, _) in headers.items() if dtype == _E4M3}


def _fp8_tensor(name: str, headers: Mapping[str, Header], block: Block | None) -> Fp8Tensor:
    stem, _, kind = name.rpartition(".")
    scale = next((f"{stem}.{one}" for one in _SCALES if f"{stem}.{one}" in headers), None)
    if scale is None or kind != "weight":
        raise CheckpointError(f"{name} is FP8, and there is no {stem}.{' or '.join(_SCALES)} beside it; {AGAIN}")
    shape = headers[name][1]
    scale_type, scale_shape = headers[scale]
    if scale_type not in SCALE_TYPES:
        raise CheckpointError(
            f"{scale} is of type {scale_type}: scales are read as {', '.join(SCALE_TYPES)}; take another copy of the "
            "checkpoint"
        )
    if len(shape) == 2:
        if block is not None and scale_shape == num_blocks(shape, block):
            return Fp8Tensor(name, shape, scale, block)
        if prod(scale_shape) == 1 or scale_shape in (shape[:1], (shape[0], 1)):
            return Fp8Tensor(name, shape, scale, None)
    wanted = "one number or one a row" if block is None else f"{num_blocks(shape, block)}, one a block of {block}"
    raise CheckpointError(f"{scale} has shape {scale_shape}, and {name} of {shape} wants {wanted}; {AGAIN}")
