"""KvRows: one layer's keys, or its values, as KvArrays lays them out."""

from __future__ import annotations

import torch

from trierarch.python_backend.executors.torch.row_codes import as_bytes, quantize_rows


class KvRows:
    """Rows of head_dim. Row (tile, slot) is number tile * block_size + slot."""

    def __init__(self, array: torch.Tensor, scales: torch.Tensor | None) -> None:
        """array: (num_blocks + 1, num_kv_heads, block_size, head_dim); scales: likewise, a row's each, of codes."""
        block_size, self._head_dim = array.shape[2:]
        self._dtype = array.dtype
        self._rows = as_bytes(array).view(-1, self._head_dim)
        self._tiles = as_bytes(array).view(-1, block_size * self._head_dim)
        self._scales = None if scales is None else scales.view(-1)
        self._tile_scales = None if scales is None else scales.view(-1, block_size)

    def write(self, rows: torch.Tensor, elements: torch.Tensor) -> None:
        """Store a step's tokens. rows: (num_tokens * num_kv_heads); elements: (num_tokens, num_kv_heads, head_dim)."""
        elements = elements.reshape(-1, self._head_dim)
        if self._scales is not None:
            elements, scales = quantize_rows(elements, self._dtype)
            self._scales.index_copy_(0, rows, scales)
        self._rows.index_copy_(0, rows, as_bytes(elements.to(self._dtype)))

    def gather(self, tiles: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Some tiles, as `dtype`. tiles: (n, num_kv_heads, num_tiles).

        Returns (n, num_kv_heads, num_tiles * block_size, head_dim).
        """
        shape = (*tiles.shape[:2], -1, self._head_dim)
        flat = tiles.view(-1)
        elements = self._tiles.index_select(0, flat).view(shape).view(self._dtype)
        if self._tile_scales is not None:
            scales = self._tile_scales.index_select(0, flat).view(*shape[:3], 1)
            elements = elements.float() * scales
        return elements.to(dtype)
