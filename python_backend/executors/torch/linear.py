"""Linear layers: one plain reference, and whatever is faster on a device, behind one callable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.matrix import Matrix
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix
from trierarch.python_backend.executors.torch.scaled_linear import ScaledLinear, can_scale

Linear = Callable[[torch.Tensor], torch.Tensor]
"""x: (rows, in_features) → (rows, out_features), in x's type."""
MakeLinear = Callable[[Matrix, torch.Tensor | None], Linear]
"""Of a weight, (out_features, in_features), and a bias."""


def make_linear(weight: Matrix, bias: torch.Tensor | None = None) -> Linear:
    """The fastest linear layer for where `weight` (out_features, in_features) lies and what type it has."""
    if isinstance(weight, Fp8Matrix) and can_scale(weight):
        return ScaledLinear(weight, bias)
    if not isinstance(weight, torch.Tensor):
        return QuantizedLinear(weight, bias)
    if weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and _has_onednn_bfloat16():
        return OneDnnLinear(weight, bias)
    return PlainLinear(weight, bias)


class PlainLinear:
    """The reference, and the choice on CUDA and for float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x @ weight.T + bias."""
        return functional.linear(x, self._weight, self._bias)


class QuantizedLinear:
    """The reference for codes: slow and obvious, on any device, since every call makes the matrix anew in x's type."""

    def __init__(self, weight: QuantizedMatrix | Fp8Matrix, bias: torch.Tensor | None = None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x @ weight.T + bias."""
        return functional.linear(x, self._weight.dequantize(x.dtype), self._bias)


class OneDnnLinear:
    """bfloat16 on the CPU with the weight copied once into the tiles that oneDNN's kernels read.

    `functional.linear` does that on every call, which halves the speed of a decode step.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x @ weight.T + bias."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return result


def _has_onednn_bfloat16() -> bool:
    operators = torch.ops.mkldnn  # empty where torch was built without oneDNN
    return hasattr(operators, "_is_mkldnn_bf16_supported") and bool(operators._is_mkldnn_bf16_supported())
