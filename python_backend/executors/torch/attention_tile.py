"""AttentionTile: which keys some queries of a step see, worked out once and used by every layer of the same window.

Sequences are batched where that wastes little: those of one *group* compute equally many tokens and hold about equally
many blocks. A long run of queries is cut into pieces, so that early queries do not read keys they cannot see and the
scores of a long prompt never fill memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from trierarch.python_backend.executors.torch.device import on_device

MAX_QUERIES: Final = 128

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """Some queries of each sequence in a group, and what they see."""

    rows: slice
    """The group's tokens among the step's: num_sequences * num_queries of them, sequence by sequence."""
    num_sequences: int
    num_queries: int
    """Of each sequence, in the group."""
    queries: slice
    """Those of each sequence that this tile computes: t of them."""
    kv_tiles: torch.Tensor  # (num_sequences, num_kv_heads, num_blocks) int64, as LayerKv numbers them
    mask: torch.Tensor  # (num_sequences, 1, 1, t, num_blocks * block_size), 0 or -inf


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What a tile must know of the KV arrays."""

    block_size: int
    num_kv_heads: int
    padding_block: int


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """Sequences that attend together."""

    first_row: int
    """Row of the group's first token among the step's."""
    num_queries: int
    """Rows to a sequence."""
    starts: Ints  # (num_sequences): position of each sequence's first query
    blocks: Ints  # (num_sequences, num_blocks): block tables, padded
    counts: Ints  # (num_sequences): queries that each has; the other rows of its num_queries are nobody's

    @property
    def positions(self) -> Ints:
        """Of each token, (num_sequences, num_queries); of nobody's 0."""
        positions: Ints = self.starts[:, None] + np.arange(self.num_queries)
        return np.where(self.is_owned, positions, 0)

    def token_blocks(self, shape: BlockShape) -> Ints:
        """Where each token's keys and values go, (num_sequences, num_queries); nobody's into the block that pads."""
        blocks: Ints = np.take_along_axis(self.blocks, self.positions // shape.block_size, axis=1)
        return np.where(self.is_owned, blocks, shape.padding_block)

    @property
    def is_owned(self) -> npt.NDArray[np.bool_]:
        """Of each token whether it is somebody's, (num_sequences, num_queries)."""
        is_owned: npt.NDArray[np.bool_] = self.counts[:, None] > np.arange(self.num_queries)
        return is_owned

    @property
    def rows(self) -> slice:
        """The group's tokens among the step's."""
        return slice(self.first_row, self.first_row + len(self.starts) * self.num_queries)

    @property
    def first_rows(self) -> range:
        """Of each sequence, the row of its first token."""
        return range(self.rows.start, self.rows.stop, self.num_queries)

    def tiles(
        self, window: int | None, shape: BlockShape, dtype: torch.dtype, device: torch.device
    ) -> Iterator[AttentionTile]:
        """Cut the group into tiles for layers of one window; masks are of `dtype`. All queries must be somebody's."""
        assert (self.counts == self.num_queries).all(), (
            "only static steps have others, and their attention has no tiles"
        )
        for first in range(0, self.num_queries, MAX_QUERIES):
            queries = slice(first, min(first + MAX_QUERIES, self.num_queries))
            kv_tiles, is_visible = self._visible(queries, window, shape)
            mask = torch.zeros(is_visible.shape, dtype=dtype)
            mask.masked_fill_(torch.from_numpy(~is_visible), -torch.inf)
            yield AttentionTile(
                rows=self.rows,
                num_sequences=len(self.starts),
                num_queries=self.num_queries,
                queries=queries,
                kv_tiles=on_device(torch.from_numpy(kv_tiles), device),
                mask=on_device(mask[:, None, None], device),
            )

    def _visible(self, queries: slice, window: int | None, shape: BlockShape) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """KV tiles that some query sees, (n, heads, blocks), and which of their slots each query sees, (n, t, slots)."""
        positions = self.starts[:, None] + np.arange(queries.start, queries.stop)  # (n, t)
        reach = positions + 1 if window is None else np.minimum(window, positions + 1)  # tokens seen, itself included
        first_block = (positions[:, 0] + 1 - reach[:, 0]) // shape.block_size  # (n)
        end_block = positions[:, -1] // shape.block_size + 1
        block_index = first_block[:, None] + np.arange((end_block - first_block).max())  # (n, blocks)
        held = np.take_along_axis(self.blocks, np.minimum(block_index, self.blocks.shape[1] - 1), axis=1)
        blocks = np.where(block_index < end_block[:, None], held, shape.padding_block)
        tiles = blocks[:, None, :] * shape.num_kv_heads + np.arange(shape.num_kv_heads)[None, :, None]
        slots = (block_index[:, :, None] * shape.block_size + np.arange(shape.block_size)).reshape(len(blocks), -1)
        distance = positions[:, :, None] - slots[:, None, :]  # (n, t, slots)
        return tiles, (distance >= 0) & (distance < reach[:, :, None])
