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

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

import torch

from trierarch.builder.codes import Block, Codes, CodeType, num_blocks
from trierarch.builder.errors import CheckpointError
from trierarch.builder.manifest import WeightType
from trierarch.builder.safetensors_header import Header

_E4M3: Final = "F8_E4M3"
_SCALES: Final = ("weight_scale_inv", "weight_scale")
_SCALE_TYPES: Final = ("F32", "BF16", "F16")
_UNUSED: Final = re.compile(r".*\.(input_scale|activation_scale|output_scale|q_scale|k_scale|v_scale|kv_scale)")
_AGAIN: Final = "download the checkpoint again"


@dataclass(frozen=True, slots=True)
class Fp8Tensor:
    """One of them."""

    scale: str
    """Name of the tensor of its scales."""
    block: Block | None
    """None where a row or all of it share one."""

    @property
    def code_type(self) -> CodeType:
        """As an engine would keep it."""
        return CodeType(WeightType.FP8, self.block)


def find_fp8(headers: Mapping[str, Header], block: Block | None) -> dict[str, Fp8Tensor]:
    """Name -> what is known of each tensor of E4M3; `block` is what the checkpoint's configuration says of blocks.

    Raises:
        CheckpointError: one has no scale, or a scale that does not fit it.
    """
    return {name: _fp8_tensor(name, headers, block) for name, (dtype, _) in headers.items() if dtype == _E4M3}


def beside_weights(headers: Mapping[str, Header], found: Mapping[str, Fp8Tensor]) -> frozenset[str]:
    """Names of tensors that are no weights of their own: scales, used and unused."""
    unused = {name for name in headers if _UNUSED.fullmatch(name)}
    return frozenset(unused | {one.scale for one in found.values()})


def read_fp8(name: str, codes: torch.Tensor, scales: torch.Tensor, block: Block | None) -> Codes:
    """What an engine stores of a tensor; one number becomes one a row.

    Raises:
        CheckpointError: a number or a scale is NaN or infinite.
    """
    scales = scales.float()
    if not scales.isfinite().all():
        raise CheckpointError(f"{name} has a scale that is not finite; {_AGAIN}")
    if codes.isnan().any():
        raise CheckpointError(f"{name} holds NaN; {_AGAIN}")
    if block is None:
        scales = scales.flatten().expand(len(codes)).contiguous()
    return Codes(codes, scales, None)


def dequantize(codes: Codes, block: Block | None) -> torch.Tensor:
    """The elements, in float32."""
    rows, inputs = (1, codes.codes.shape[1]) if block is None else block
    scales = codes.scales.view(len(codes.scales), -1)
    spread = scales.repeat_interleave(rows, 0)[: codes.codes.shape[0]]
    return codes.codes.float() * spread.repeat_interleave(inputs, 1)[:, : codes.codes.shape[1]]


def _fp8_tensor(name: str, headers: Mapping[str, Header], block: Block | None) -> Fp8Tensor:
    stem, _, kind = name.rpartition(".")
    scale = next((f"{stem}.{one}" for one in _SCALES if f"{stem}.{one}" in headers), None)
    if scale is None or kind != "weight":
        raise CheckpointError(f"{name} is FP8, and there is no {stem}.{' or '.join(_SCALES)} beside it; {_AGAIN}")
    shape = headers[name][1]
    scale_type, scale_shape = headers[scale]
    if scale_type not in _SCALE_TYPES:
        raise CheckpointError(
            f"{scale} is of type {scale_type}: scales are read as {', '.join(_SCALE_TYPES)}; take another copy of the "
            "checkpoint"
        )
    if len(shape) == 2:
        if block is not None and scale_shape == num_blocks(shape, block):
            return Fp8Tensor(scale, block)
        if prod(scale_shape) == 1 or scale_shape in (shape[:1], (shape[0], 1)):
            return Fp8Tensor(scale, None)
    wanted = "one number or one a row" if block is None else f"{num_blocks(shape, block)}, one a block of {block}"
    raise CheckpointError(f"{scale} has shape {scale_shape}, and {name} of {shape} wants {wanted}; {_AGAIN}")
