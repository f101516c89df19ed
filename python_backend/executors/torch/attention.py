"""Paged attention: queries of a step against the keys and values that lie in their sequences' blocks.

`attend` is the eager path: sequences of alike length share one padded gather and two batched matrix products.
`attend_reference` says the same slowly and plainly, one sequence and one head at a time; tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trierarch.python_backend.executors.torch.attention_tile import AttentionTile
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv


class Attention:
    """One layer's attention, without its projections."""

    def __init__(self, num_kv_heads: int, scale: float, softcap: float | None) -> None:
        self._num_kv_heads = num_kv_heads
        self._scale = scale
        self._softcap = softcap

    def __call__(self, queries: torch.Tensor, kv: LayerKv, tiles: Sequence[AttentionTile]) -> torch.Tensor:
        """queries: (num_tokens, num_heads, head_dim) → (num_tokens, num_heads * head_dim)."""
        num_tokens, num_heads, head_dim = queries.shape
        result = queries.new_empty(num_tokens, num_heads * head_dim)
        for tile in tiles:
            grouped = (tile.num_sequences, tile.num_queries, self._num_kv_heads, -1, head_dim)
            mine = queries[tile.rows].view(grouped)[:, tile.queries]
            result[tile.rows].view(grouped)[:, tile.queries] = self._attend(mine, kv, tile)
        return result

    def _attend(self, queries: torch.Tensor, kv: LayerKv, tile: AttentionTile) -> torch.Tensor:
        """queries: (n, t, num_kv_heads, group, head_dim), and so the result."""
        n, t, heads, group, head_dim = queries.shape
        keys, values = kv.gather(tile.kv_tiles, queries.dtype)  # (n, heads, length, head_dim)
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        # The heads of a group read the same keys: they are rows of one product.
        rows = queries.permute(0, 2, 3, 1, 4).reshape(n * heads, group * t, head_dim)
        scores = torch.bmm(rows, keys.transpose(1, 2)).view(n, heads, group, t, -1)
        probabilities = self._masked(scores, tile.mask).softmax(-1)
        mixed = torch.bmm(probabilities.view(n * heads, group * t, -1), values)
        return mixed.view(n, heads, group, t, head_dim).permute(0, 3, 1, 2, 4)

    def _masked(self, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._softcap is None:
            return torch.add(mask, scores, alpha=self._scale)
        capped = (scores.float() * (self._scale / self._softcap)).tanh_()
        return torch.add(mask, capped, alpha=self._softcap).to(scores.dtype)


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
