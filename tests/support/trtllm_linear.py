"""One matrix of a TensorRT-LLM checkpoint as its kernels multiply by it, whatever it is stored as."""

from __future__ import annotations

from collections.abc import Mapping

import torch

E4M3_MAX = 448.0
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""Magnitudes of a 4-bit float, by its lower three bits."""


def linear(tensors: Mapping[str, torch.Tensor], name: str, inputs: torch.Tensor, has_bias: bool = True) -> torch.Tensor:
    """inputs (n, in) times matrix `name`, with its bias where it has one; (n, out) float32."""
    weight = tensors[f"{name}.weight"]
    if weight.dtype in (torch.float32, torch.float16, torch.bfloat16):
        outputs = inputs @ weight.float().T
    else:
        outputs = _quantized(tensors, name, weight, inputs)
    bias = tensors.get(f"{name}.bias")
    return outputs if bias is None or not has_bias else outputs + bias.float()


def _quantized(
    tensors: Mapping[str, torch.Tensor], name: str, weight: torch.Tensor, inputs: torch.Tensor
) -> torch.Tensor:
    scale = tensors[f"{name}.weights_scaling_factor"].float()
    prequant = tensors.get(f"{name}.prequant_scaling_factor")
    if prequant is not None:
        inputs = inputs * prequant.float()
    if weight.dtype == torch.float8_e4m3fn:
        return _e4m3(inputs, tensors[f"{name}.activation_scaling_factor"]) @ (weight.float() * scale).T
    if weight.dtype == torch.uint8:
        two = tensors[f"{name}.weights_scaling_factor_2"].float()
        return (
            _nvfp4(inputs, tensors[f"{name}.activation_scaling_factor"]) @ (_fp4(weight) * _spread(scale * two, 16)).T
        )
    assert weight.dtype == torch.int8
    activation = tensors.get(f"{name}.activation_scaling_factor")
    if activation is not None:
        codes = (inputs / activation.float()).round().clamp(-128, 127)
        return (codes * activation.float()) @ (weight.float() * scale.view(-1, 1)).T
    codes = _int4(weight)
    return inputs @ (codes * _spread(scale, codes.shape[1] // scale.shape[1])).T


def _e4m3(inputs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    scale = scale.float()
    return (inputs / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float() * scale


def _nvfp4(inputs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Each 16 inputs share a scale of their own, which is an E4M3 multiple of the tensor's."""
    blocks = inputs.unflatten(-1, (-1, 16))
    own = (blocks.abs().amax(-1, keepdim=True) / 6.0 / scale.float()).clamp(2**-9, E4M3_MAX)
    own = own.to(torch.float8_e4m3fn).float() * scale.float()
    steps = (E2M1[1:] + E2M1[:-1]) / 2
    codes = torch.bucketize((blocks / own).abs(), steps)
    return (E2M1[codes] * blocks.sign() * own).flatten(-2)


def _fp4(packed: torch.Tensor) -> torch.Tensor:
    """Two 4-bit floats a byte, the first in its low half: (out, in / 2) uint8 to (out, in)."""
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).long()
    return E2M1[codes & 7] * torch.where(codes >= 8, -1.0, 1.0)


def _int4(packed: torch.Tensor) -> torch.Tensor:
    """Two rows a byte, the even one in its low half, two's complement: (out / 2, in) int8 to (out, in)."""
    codes = packed.view(torch.uint8).int()
    pair = torch.stack([codes & 15, codes >> 4], dim=1)
    return torch.where(pair >= 8, pair - 16, pair).flatten(0, 1).float()


def _spread(scales: torch.Tensor, size: int) -> torch.Tensor:
    return scales.repeat_interleave(size, dim=-1)
