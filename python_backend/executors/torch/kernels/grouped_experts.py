"""GroupedExperts: all experts of a layer at once, by a kernel of ours, with no question to the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
import triton

from trierarch.python_backend.executors.torch.kernels import expert_product

_SMALL_TILE: Final = 16
"""Pairs of a tile: a tensor core multiplies no fewer."""
_LARGE_TILE: Final = 64
_BLOCK_N: Final = 64
_BLOCK_K: Final = 64
_OPTIONS: Final = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
"""Of the compiler. None was chosen by a measurement yet."""


@dataclass(frozen=True, slots=True)
class PairGroups:
    """Pairs by expert, as `expert_product` has them."""

    order: torch.Tensor
    tiles: torch.Tensor
    tile_rows: int

    @classmethod
    def of(cls, chosen: torch.Tensor, num_experts: int) -> PairGroups:
        """chosen: (rows, experts_per_token) int64. There are as many tiles as any choice of so many pairs needs."""
        experts = chosen.flatten()
        num_pairs, device = len(experts), chosen.device
        tile_rows = min(_LARGE_TILE, max(_SMALL_TILE, triton.next_power_of_2(num_pairs // num_experts)))
        num_chosen = min(num_experts, num_pairs)
        most_tiles = num_chosen + (num_pairs - num_chosen) // tile_rows
        counts = torch.zeros(num_experts, dtype=torch.int64, device=device)
        counts.scatter_add_(0, experts, torch.ones_like(experts))
        ends, num_tiles = counts.cumsum(0), (counts + tile_rows - 1) // tile_rows
        tile_ends = num_tiles.cumsum(0)
        numbers = torch.arange(most_tiles, device=device)
        expert = torch.searchsorted(tile_ends, numbers, right=True)
        known = expert.clamp(max=num_experts - 1)
        nth = numbers - (tile_ends - num_tiles)[known]  # of its expert's tiles
        first = (ends - counts)[known] + nth * tile_rows
        tiles = torch.stack((torch.where(expert < num_experts, expert, -1), first, ends[known]), 1)
        return cls(experts.argsort(stable=True), tiles.int(), tile_rows)


class GroupedExperts:
    """Implements Experts."""

    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor, gate: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """gate_up: (experts, 2 * inner, hidden); down: (experts, hidden, inner). gate: (n, 2 * inner) → (n, inner)."""
        self._gate_up = gate_up
        self._down = down
        self._gate = gate

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """See Experts. What the experts give is weighed and summed in float32."""
        groups = PairGroups.of(chosen, len(self._gate_up))
        inner = self._gate(_multiply(x, self._gate_up, groups, chosen.shape[1]))
        given = _multiply(inner, self._down, groups, 1)
        return (given.view(*chosen.shape, -1).float() * weights[..., None]).sum(1).to(x.dtype)


def _multiply(x: torch.Tensor, weight: torch.Tensor, groups: PairGroups, pairs_per_row: int) -> torch.Tensor:
    """(pairs, out): of each pair its row of x, times its expert's matrix."""
    assert x.stride(1) == 1
    assert weight.stride(2) == 1
    _, num_outputs, num_inputs = weight.shape
    y = x.new_empty((len(groups.order), num_outputs))
    expert_product.multiply[(len(groups.tiles), triton.cdiv(num_outputs, _BLOCK_N))](
        y,
        x,
        weight,
        groups.order,
        groups.tiles,
        x.stride(0),
        weight.stride(0),
        weight.stride(1),
        num_inputs,
        num_outputs,
        PAIRS_PER_ROW=pairs_per_row,
        BLOCK_M=groups.tile_rows,
        BLOCK_N=_BLOCK_N,
        BLOCK_K=_BLOCK_K,
        **_OPTIONS,
    )
    return y
