"""EagerHeads: queries, keys and values, made ready for attention by torch's own operators."""

from __future__ import annotations

import torch

from trierarch.python_backend.executors.torch.kv_arrays import LayerKv
from trierarch.python_backend.executors.torch.norm import RmsNorm
from trierarch.python_backend.executors.torch.rope import Rotation


class EagerHeads:
    """Implements Heads."""

    def __init__(self, num_heads: int, num_kv_heads: int, qk_norm: RmsNorm | None) -> None:
        """qk_norm: of queries and keys, whose weight is (num_heads + num_kv_heads, head_dim)."""
        self._num_heads, self._num_kv_heads = num_heads, num_kv_heads
        self._qk_norm = qk_norm

    def __call__(
        self, heads: torch.Tensor, rotation: Rotation | None, kv: LayerKv, kv_rows: torch.Tensor
    ) -> torch.Tensor:
        """See Heads."""
        # Queries and keys are normalised and rotated alike, so they go together.
        queries_keys, values = heads.split_with_sizes((self._num_heads + self._num_kv_heads, self._num_kv_heads), 1)
        if self._qk_norm is not None:
            queries_keys = self._qk_norm(queries_keys)
        if rotation is not None:
            queries_keys = rotation(queries_keys)
        queries, keys = queries_keys.split_with_sizes((self._num_heads, self._num_kv_heads), 1)
        kv.write(kv_rows, keys, values)
        return queries
