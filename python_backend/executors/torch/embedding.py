"""Embedding: the rows of a table that belong to token ids."""

from __future__ import annotations

import torch
from torch.nn import functional

from trierarch.python_backend.executors.torch.adapted_rows import AdaptedRows
from trierarch.python_backend.executors.torch.matrix import Matrix


class Embedding:
    """A look-up, scaled where the family wants that (Gemma). A quantised table is dequantised row by row."""

    def __init__(self, table: Matrix, scale: float, dtype: torch.dtype) -> None:
        """table: (vocab, hidden). dtype: of activations, which an unquantised table is of."""
        self._table = table
        self._dtype = dtype
        # Rounded as the reference rounds it: in bfloat16, 576 ** 0.5 is 24.
        self._scale = torch.tensor(scale, dtype=dtype).item()

    def __call__(self, token_ids: torch.Tensor, adapted: AdaptedRows | None = None) -> torch.Tensor:
        """token_ids: (num_tokens) int64 → (num_tokens, hidden)."""
        table = self._table
        if isinstance(table, torch.Tensor):
            x = functional.embedding(token_ids, table)
        else:
            x = table.rows(token_ids, self._dtype)
        x = x if self._scale == 1.0 else x * self._scale
        return x if adapted is None else adapted.embed(token_ids, x, self._scale)
