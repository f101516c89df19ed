"""Weight-only INT8 and INT4 as TensorRT-LLM rounds them, to say what that costs before it does.

Such a checkpoint has its weights unrounded: PretrainedModel.from_checkpoint rounds `qkv`, `dense`, `fc`, `gate` and `proj` when
they are 16-bit floats and `quant_algo` says W8A16 or W4A16 (weight_only_quantize_dict). Each output has a scale, its largest
weight over 2 ** (bits - 1) (cutlass_preprocessors.cpp, symmetric_quantize). Split over GPUs, a row that is cut has one for
each piece, which costs no more.
"""

from __future__ import annotations

import re
from typing import Any, Final

import torch

from trierarch.builder.manifest import WeightType

BITS: Final = {WeightType.INT8: 8, WeightType.INT4: 4}
_MATRICES: Final = re.compile(
    r".*\.layers\.\d+\..*(q_proj|k_proj|v_proj|qkv_proj|o_proj|gate_proj|up_proj|gate_up_proj|down_proj|w1|w2|w3)(\.weight)?"
)


def round_weights(model: Any, bits: int) -> None:
    """Round the matrices of a transformers model where it is, experts' too."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and _MATRICES.fullmatch(name):
            parameter.data = rounded(parameter.data, bits)


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """(..., out, in) as it comes back from `bits`."""
    largest = 2 ** (bits - 1)
    scale = weight.float().abs().amax(-1, keepdim=True) / largest
    codes = (weight.float() / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().clamp(-largest, largest - 1)
    values: torch.Tensor = codes * scale
    return values.to(weight.dtype)
