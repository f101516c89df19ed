"""What an NVFP4 checkpoint computes, on a machine that cannot: modelopt imitates the format on a GPU alone.

Weights are two 4-bit floats (E2M1) a byte, the first in its low half. Each 16 inputs share an E4M3 scale, which multiplies one
float32 of the whole matrix; inputs are rounded likewise as they come. Source: nvidia-modelopt's NVFP4QTensor, and the tensors
that its Hugging Face export names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file

from trierarch.builder.errors import ConfigError

BLOCK: Final = 16
_E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LARGEST: Final = 6.0
_E4M3_LARGEST: Final = 448.0
_E4M3_LEAST: Final = 2.0**-9


def apply_nvfp4(model: Any, folder: Path) -> None:
    """Make an unquantised transformers model compute as the NVFP4 checkpoint in `folder` says.

    Raises:
        ConfigError: it has quantised experts, which are not matrices of their own in transformers.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(str(path), device=str(model.device))
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if tensor.dtype == torch.uint8:
            stem = name.removesuffix(".weight")
            module = modules.get(stem)
            if not isinstance(module, torch.nn.Linear):
                raise ConfigError(
                    f"quantization is 'nvfp4': {stem} is an expert's, whose cost is measured on a GPU alone; build on a "
                    "machine with one, or skip this with --no-accuracy-check"
                )
            module.weight.data = nvfp4_weight(tensors, stem).to(module.weight.dtype)
            module.register_forward_pre_hook(_rounding(tensors[f"{stem}.input_scale"]))
        elif name in parameters:
            parameters[name].data = tensor.to(parameters[name].dtype)


def nvfp4_weight(tensors: Mapping[str, torch.Tensor], stem: str) -> torch.Tensor:
    """(out, in) float32 of one matrix."""
    packed = tensors[f"{stem}.weight"]
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).long()
    magnitudes = torch.tensor(_E2M1, device=packed.device)[codes & 7]
    values = torch.where(codes >= 8, -magnitudes, magnitudes)
    scales = tensors[f"{stem}.weight_scale"].float() * tensors[f"{stem}.weight_scale_2"].float()
    return values * scales.repeat_interleave(BLOCK, dim=-1)


def rounded(inputs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Inputs (..., n) as the multiplication sees them; `scale` is the float32 one of them all."""
    blocks = inputs.float().reshape(*inputs.shape[:-1], -1, BLOCK)
    own = (blocks.abs().amax(-1, keepdim=True) / _LARGEST / scale.float()).clamp(_E4M3_LEAST, _E4M3_LARGEST)
    steps = own.to(torch.float8_e4m3fn).float() * scale.float()
    magnitudes = torch.tensor(_E2M1, device=inputs.device)
    places = torch.bucketize((blocks / steps).abs(), (magnitudes[1:] + magnitudes[:-1]) / 2)
    values: torch.Tensor = magnitudes[places] * blocks.sign() * steps
    return values.flatten(-2).to(inputs.dtype)


def _rounding(scale: torch.Tensor) -> Any:
    def hook(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (rounded(arguments[0], scale), *arguments[1:])

    return hook
