"""Mixture of experts: each token goes through the few networks its router scores highest (Mixtral, Qwen3-MoE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from trierarch.builder.manifest import Moe
from trierarch.python_backend.executors.torch.adapted_rows import AdaptedRows
from trierarch.python_backend.executors.torch.layer_backend import Gate
from trierarch.python_backend.executors.torch.linear import Linear
from trierarch.python_backend.executors.torch.matrix import Matrix
from trierarch.python_backend.executors.torch.operators import has_kernels


class Experts(Protocol):
    """All networks of a layer."""

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Each row's weighted sum of what its experts make of it, (rows, hidden).

        x: (rows, hidden); chosen: (rows, experts_per_token) int64, no expert twice in a row; weights: likewise, float32.
        """
        ...


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


def make_experts(gate_up: Matrix, down: Matrix, gate: Gate, looped: Sequence[Linear]) -> Experts:
    """The fastest for where the matrices lie. gate_up: (experts, 2 * inner, hidden); down: (experts, hidden, inner).

    looped: the experts one by one, which are what codes are multiplied by.
    """
    if isinstance(gate_up, torch.Tensor) and isinstance(down, torch.Tensor) and has_kernels(gate_up.device):
        from trierarch.python_backend.executors.torch.kernels.grouped_experts import GroupedExperts

        return GroupedExperts(gate_up, down, gate)
    return LoopedExperts(looped)
