"""Mixture of experts: each token goes through the few networks its router scores highest (Mixtral, Qwen3-MoE)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trierarch.builder.manifest import Activation, Moe
from trierarch.python_backend.executors.torch.adaptable_linear import AdaptableLinear
from trierarch.python_backend.executors.torch.adapted_rows import AdaptedRows
from trierarch.python_backend.executors.torch.layer_backend import Experts, LayerBackend
from trierarch.python_backend.executors.torch.linear import Linear
from trierarch.python_backend.executors.torch.matrix import Matrix
from trierarch.python_backend.executors.torch.mlp import GatedMlp


class MoeMlp:
    """The weighted sum of each token's chosen experts."""

    def __init__(self, router: Linear, experts: Experts, moe: Moe) -> None:
        self._router = router
        self._experts = experts
        self._moe = moe

    def __call__(self, x: torch.Tensor, adapted: AdaptedRows | None = None) -> torch.Tensor:
        """x: (rows, hidden), and so the result. Only experts that some row chose are computed; no adapter changes them."""
        scores = torch.softmax(self._router(x).float(), -1)  # (rows, num_experts)
        weights, chosen = scores.topk(self._moe.experts_per_token, -1)  # (rows, experts_per_token) each
        if self._moe.normalize_top_k:
            weights = weights / weights.sum(-1, keepdim=True)
        return self._experts(x, chosen, weights)


class LoopedExperts:
    """One expert after the other: slow and obvious, on any device, which is asked who was chosen. Implements Experts."""

    def __init__(self, experts: Sequence[Linear]) -> None:
        """experts: (rows, hidden) → (rows, hidden) each."""
        self._experts = experts

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """See Experts."""
        result = torch.zeros_like(x)
        for expert in sorted(set(chosen.flatten().tolist())):
            rows, ranks = (chosen == expert).nonzero(as_tuple=True)
            share = self._experts[expert](x[rows]) * weights[rows, ranks, None]
            result.index_add_(0, rows, share.to(x.dtype))
        return result


def looped_experts(backend: LayerBackend, gate_up: Matrix, down: Matrix, activation: Activation) -> LoopedExperts:
    """Expert by expert by what `backend` makes of each. Matrices as LayerBackend.experts has them."""
    gate = backend.gate(activation)
    return LoopedExperts(
        [
            GatedMlp(
                AdaptableLinear("expert", one, make=backend.linear),
                AdaptableLinear("expert", other, make=backend.linear),
                gate,
            )
            for one, other in zip(*(matrix.unbind() for matrix in (gate_up, down)), strict=True)
        ]
    )
