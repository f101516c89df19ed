"""GatheredAttention: paged attention whose shapes do not depend on what a step holds: the reference for static steps.

Every token reads every block that a sequence may have, and what it must not see is masked on the device. Slow and obvious,
on any device; kernels/ragged_attention.py is what serves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trierarch.python_backend.executors.torch.attention_backend import AttentionShape
from trierarch.python_backend.executors.torch.attention_tile import BlockShape, Ints, SequenceGroup
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv


class GatheredAttention:
    """Implements StaticAttentionBackend."""

    label = "torch's operators, of fixed shapes"

    def __init__(self, table_width: int = 0) -> None:
        """table_width: blocks that every sequence is given at least; the last bits of sums depend on them."""
        self._table_width = table_width

    def of_step(
        self,
        groups: Sequence[SequenceGroup],
        windows: Collection[int | None],
        shape: BlockShape,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Mapping[int | None, PagedRows]:
        """See AttentionBackend.of_step."""
        positions = np.concatenate([one.positions.ravel() for one in groups])
        width = max(self._table_width, *(one.blocks.shape[1] for one in groups))
        blocks = np.concatenate([_blocks_of_rows(one, width, shape.padding_block) for one in groups])
        tiles = blocks[:, None, :] * shape.num_kv_heads + np.arange(shape.num_kv_heads)[None, :, None]
        on_device = torch.from_numpy(positions).to(device), torch.from_numpy(tiles).to(device)
        return {window: PagedRows(*on_device, window) for window in windows}


def _blocks_of_rows(group: SequenceGroup, width: int, padding_block: int) -> Ints:
    """(rows, width): its sequence's blocks for each token; for nobody's, the one that pads."""
    missing = width - group.blocks.shape[1]
    blocks = np.pad(group.blocks, ((0, 0), (0, missing)), constant_values=padding_block).repeat(group.num_queries, 0)
    return np.where(group.is_owned.reshape(-1, 1), blocks, padding_block)


@dataclass(frozen=True, slots=True)
class PagedRows:
    """Tokens and where their keys lie. Implements StaticAttention."""

    positions: torch.Tensor  # (num_tokens) int64
    kv_tiles: torch.Tensor  # (num_tokens, num_kv_heads, num_blocks) int64, as LayerKv numbers them
    window: int | None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """See StaticAttention.tensors."""
        return self.positions, self.kv_tiles

    @property
    def constants(self) -> tuple[int, ...]:
        """See StaticAttention.constants."""
        return tuple(self.kv_tiles.shape)

    def __call__(self, queries: torch.Tensor, kv: LayerKv, shape: AttentionShape) -> torch.Tensor:
        """See StepAttention."""
        num_tokens, num_heads, head_dim = queries.shape
        keys, values = kv.gather(self.kv_tiles, queries.dtype)  # (num_tokens, num_kv_heads, slots, head_dim)
        grouped = queries.reshape(num_tokens, shape.num_kv_heads, -1, head_dim)
        scores = (grouped @ keys.transpose(2, 3)).float() * shape.scale
        if shape.softcap is not None:
            scores = (scores / shape.softcap).tanh() * shape.softcap
        distance = self.positions[:, None] - torch.arange(keys.shape[2], device=queries.device)
        is_hidden = distance < 0 if self.window is None else (distance < 0) | (distance >= self.window)
        weights = scores.masked_fill(is_hidden[:, None, None], -torch.inf).softmax(-1).to(queries.dtype)
        return (weights @ values).reshape(num_tokens, num_heads * head_dim)
