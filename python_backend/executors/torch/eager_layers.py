"""EagerLayers: a layer's parts by torch's own operators, on any device; what kernels are held to."""

from __future__ import annotations

import torch

from trierarch.builder.manifest import Activation
from trierarch.python_backend.executors.torch.gate import EagerGate
from trierarch.python_backend.executors.torch.heads import EagerHeads
from trierarch.python_backend.executors.torch.linear import Linear, make_linear
from trierarch.python_backend.executors.torch.matrix import Matrix
from trierarch.python_backend.executors.torch.moe import LoopedExperts, looped_experts
from trierarch.python_backend.executors.torch.norm import RmsNorm


class EagerLayers:
    """Implements LayerBackend."""

    label = "torch's operators"

    def linear(self, weight: Matrix, bias: torch.Tensor | None = None) -> Linear:
        """See LayerBackend.linear."""
        return make_linear(weight, bias)

    def norm(self, weight: torch.Tensor, eps: float) -> RmsNorm:
        """See LayerBackend.norm."""
        return RmsNorm(weight, eps)

    def gate(self, activation: Activation) -> EagerGate:
        """See LayerBackend.gate."""
        return EagerGate(activation)

    def heads(self, num_heads: int, num_kv_heads: int, qk_norm: torch.Tensor | None, eps: float) -> EagerHeads:
        """See LayerBackend.heads."""
        return EagerHeads(num_heads, num_kv_heads, None if qk_norm is None else RmsNorm(qk_norm, eps))

    def experts(self, gate_up: Matrix, down: Matrix, activation: Activation) -> LoopedExperts:
        """See LayerBackend.experts."""
        return looped_experts(self, gate_up, down, activation)
