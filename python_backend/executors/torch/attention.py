"""Paged attention: queries of a step against the keys and values that lie in their sequences' blocks.

`EagerAttention` batches: sequences of alike length share one padded gather and two batched matrix products; on CUDA a kernel
of ours takes its place (kernels/). `attend_reference` says the same slowly and plainly, one sequence and one head at a time;
tests hold them together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from trierarch.python_backend.executors.torch.attention_backend import AttentionShape
from trierarch.python_backend.executors.torch.attention_tile import AttentionTile, BlockShape, SequenceGroup
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv


class EagerAttention:
    """By torch's own operators, on any device. Implements AttentionBackend."""

    label = "torch's operators"

    def of_step(
        self,
        groups: Sequence[SequenceGroup],
        windows: Collection[int | None],
        shape: BlockShape,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Mapping[int | None, TiledAttention]:
        """See AttentionBackend.of_step."""
        return {
            window: TiledAttention(
                tuple(tile for group in groups for tile in group.tiles(window, shape, dtype, device))
            )
            for window in windows
        }


@dataclass(frozen=True, slots=True)
class TiledAttention:
    """Implements StepAttention."""

    tiles: tuple[AttentionTile, ...]
    """Those that cover all tokens."""

    def __call__(self, queries: torch.Tensor, kv: LayerKv, shape: AttentionShape) -> torch.Tensor:
        """See StepAttention."""
        num_tokens, num_heads, head_dim = queries.shape
        result = queries.new_empty(num_tokens, num_heads * head_dim)
        for tile in self.tiles:
            grouped = (tile.num_sequences, tile.num_queries, shape.num_kv_heads, -1, head_dim)
            mine = queries[tile.rows].view(grouped)[:, tile.queries]
            result[tile.rows].view(grouped)[:, tile.queries] = _attend(mine, kv, tile, shape)
        return result


def _attend(queries: torch.Tensor, kv: LayerKv, tile: AttentionTile, shape: AttentionShape) -> torch.Tensor:
    """queries: (n, t, num_kv_heads, group, head_dim), and so the result."""
    n, t, heads, group, head_dim = queries.shape
    keys, values = kv.gather(tile.kv_tiles, queries.dtype)  # (n, heads, length, head_dim)
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    # The heads of a group read the same keys: they are rows of one product.
    rows = queries.permute(0, 2, 3, 1, 4).reshape(n * heads, group * t, head_dim)
    scores = torch.bmm(rows, keys.transpose(1, 2)).view(n, heads, group, t, -1)
    probabilities = _masked(scores, tile.mask, shape).softmax(-1)
    mixed = torch.bmm(probabilities.view(n * heads, group * t, -1), values)
    return mixed.view(n, heads, group, t, head_dim).permute(0, 3, 1, 2, 4)


def _masked(scores: torch.Tensor, mask: torch.Tensor, shape: AttentionShape) -> torch.Tensor:
    if shape.softcap is None:
        return torch.add(mask, scores, alpha=shape.scale)
    capped = (scores.float() * (shape.scale / shape.softcap)).tanh_()
    return torch.add(mask, capped, alpha=shape.softcap).to(scores.dtype)


def attend_reference(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    start: int,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attention of one sequence, in float32. Query i stands at position start + i and sees keys up to there.

    queries: (num_queries, num_heads, head_dim). keys, values: (start + num_queries, num_kv_heads, head_dim), in
    position order. Returns (num_queries, num_heads, head_dim).
    """
    num_queries, num_heads, _ = queries.shape
    group = num_heads // keys.shape[1]
    result = torch.empty_like(queries, dtype=torch.float32)
    for head in range(num_heads):
        for query in range(num_queries):
            last = start + query
            first = 0 if window is None else max(0, last + 1 - window)
            seen = slice(first, last + 1)
            scores = keys[seen, head // group].float() @ queries[query, head].float() * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = torch.exp(scores - scores.max())
            result[query, head] = (weights / weights.sum()) @ values[seen, head // group].float()
    return result
