"""FusedLayers: what a layer is made of by kernels of ours: weights multiplied as codes, and one launch for all between."""

from __future__ import annotations

from typing import Final

import torch

from trierarch.builder.manifest import Activation
from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.kernels.coded_linear import CodedLinear, FewRowsLinear
from trierarch.python_backend.executors.torch.kernels.coded_matrix import CodedMatrix
from trierarch.python_backend.executors.torch.kernels.fused_parts import (
    FusedGate,
    FusedHeads,
    FusedNorm,
    quantize_rows,
)
from trierarch.python_backend.executors.torch.kernels.grouped_experts import GroupedExperts
from trierarch.python_backend.executors.torch.layer_backend import Experts
from trierarch.python_backend.executors.torch.linear import Linear, make_linear
from trierarch.python_backend.executors.torch.matrix import Matrix
from trierarch.python_backend.executors.torch.moe import looped_experts
from trierarch.python_backend.executors.torch.scaled_linear import ScaledLinear, can_scale

_E4M3_CAPABILITY: Final = (8, 9)
"""sm_89 is the first that converts it."""


class FusedLayers:
    """Implements LayerBackend."""

    label = "our kernels"

    def __init__(self, device: torch.device, num_processors: int) -> None:
        """num_processors: that the device has; sharing out sums keeps them busy."""
        self._num_processors = num_processors
        self._has_e4m3 = device.type == "cpu" or torch.cuda.get_device_capability(device) >= _E4M3_CAPABILITY

    def linear(self, weight: Matrix, bias: torch.Tensor | None = None) -> Linear:
        """See LayerBackend.linear. Weights that are no codes are multiplied by torch."""
        if isinstance(weight, torch.Tensor) or not CodedMatrix.takes(weight):
            return make_linear(weight, bias)
        matrix = CodedMatrix.of(weight, self._num_processors, self._has_e4m3)
        if isinstance(weight, Fp8Matrix) and can_scale(weight):
            return FewRowsLinear(matrix, bias, ScaledLinear(weight, bias, quantize=quantize_rows))
        return CodedLinear(matrix, bias)

    def norm(self, weight: torch.Tensor, eps: float) -> FusedNorm:
        """See LayerBackend.norm."""
        return FusedNorm(weight, eps)

    def gate(self, activation: Activation) -> FusedGate:
        """See LayerBackend.gate."""
        return FusedGate(activation)

    def heads(self, num_heads: int, num_kv_heads: int, qk_norm: torch.Tensor | None, eps: float) -> FusedHeads:
        """See LayerBackend.heads."""
        return FusedHeads(num_heads, num_kv_heads, qk_norm, eps)

    def experts(self, gate_up: Matrix, down: Matrix, activation: Activation) -> Experts:
        """See LayerBackend.experts. Codes are multiplied expert by expert."""
        if isinstance(gate_up, torch.Tensor) and isinstance(down, torch.Tensor):
            return GroupedExperts(gate_up, down, self.gate(activation))
        return looped_experts(self, gate_up, down, activation)
