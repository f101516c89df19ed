"""Mixture of experts: each token goes through the few networks its router scores highest (Mixtral, Qwen3-MoE)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trierarch.builder.manifest import Moe
from trierarch.python_backend.executors.torch.adapted_rows import AdaptedRows
from trierarch.python_backend.executors.torch.linear import Linear
from trierarch.python_backend.executors.torch.mlp import GatedMlp


class MoeMlp:
    """The weighted sum of each token's chosen experts."""

    def __init__(self, router: Linear, experts: Sequence[GatedMlp], moe: Moe) -> None:
        self._router = router
        self._experts = experts
        self._moe = moe

    def __call__(self, x: torch.Tensor, adapted: AdaptedRows | None = None) -> torch.Tensor:
        """x: (rows, hidden), and so the result. Only experts that some row chose are computed; no adapter changes them."""
        scores = torch.softmax(self._router(x).float(), -1)  # (rows, num_experts)
        weights, chosen = scores.topk(self._moe.experts_per_token, -1)  # (rows, experts_per_token) each
        if self._moe.normalize_top_k:
            weights = weights / weights.sum(-1, keepdim=True)
        result = torch.zeros_like(x)
        for expert in sorted(set(chosen.flatten().tolist())):
            rows, ranks = (chosen == expert).nonzero(as_tuple=True)
            share = self._experts[expert](x[rows]) * weights[rows, ranks, None]
            result.index_add_(0, rows, share.to(x.dtype))
        return result
