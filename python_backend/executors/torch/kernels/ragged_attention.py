"""RaggedAttention: a step's attention by one kernel of ours for all sequences alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import triton

from trierarch.python_backend.executors.torch.attention_backend import AttentionShape
from trierarch.python_backend.executors.torch.attention_tile import BlockShape, Ints, SequenceGroup
from trierarch.python_backend.executors.torch.device import on_device
from trierarch.python_backend.executors.torch.kernels.paged_attention import (
    LARGE_TILE,
    SMALL_TILE,
    RaggedQueries,
    paged_attention,
)
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv

_MIN_KEYS_PER_SPLIT: Final = 256
_MAX_SPLITS: Final = 16
_TABLE_WIDTH: Final = 16
"""Block tables are a multiple of so many blocks wide: the compiler specialises on less."""


class RaggedAttention:
    """Implements AttentionBackend, and StaticAttentionBackend."""

    label = "our kernels"

    def __init__(
        self,
        group: int,
        num_processors: int,
        min_keys_per_split: int = _MIN_KEYS_PER_SPLIT,
        max_seq_len: int | None = None,
    ) -> None:
        """group: query heads to a KV head. num_processors: that the device has; sharing out keys keeps them busy.

        max_seq_len: what keys are shared out by, so that a step is alike however long its sequences are; None goes by each
        step's longest.
        """
        self._group = group
        self._num_processors = num_processors
        self._min_keys_per_split = min_keys_per_split
        self._max_seq_len = max_seq_len

    def of_step(
        self,
        groups: Sequence[SequenceGroup],
        windows: Collection[int | None],
        shape: BlockShape,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Mapping[int | None, WindowedAttention]:
        """See AttentionBackend.of_step."""
        most = max(group.num_queries for group in groups)
        tile_rows = min(LARGE_TILE, max(SMALL_TILE, triton.next_power_of_2(most * self._group)))
        tiles = _tiles(groups, tile_rows // self._group)
        queries = RaggedQueries(
            sequences=_on(device, _sequences(groups)),
            block_tables=_on(device, _block_tables(groups)),
            tiles=_on(device, tiles),
            group=self._group,
            tile_rows=tile_rows,
            num_splits=self._num_splits(
                len(tiles) * shape.num_kv_heads,
                self._max_seq_len or max(int((group.starts + group.counts).max()) for group in groups),
            ),
        )
        return {window: WindowedAttention(queries, window) for window in windows}

    def _num_splits(self, num_programs: int, num_keys: int) -> int:
        """A power of two. num_keys: of the longest sequence."""
        wanted = min(self._num_processors // num_programs, num_keys // self._min_keys_per_split, _MAX_SPLITS)
        return 1 << max(wanted, 1).bit_length() - 1


@dataclass(frozen=True, slots=True)
class WindowedAttention:
    """Implements StaticAttention."""

    queries: RaggedQueries
    window: int | None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """See StaticAttention.tensors."""
        return self.queries.sequences, self.queries.block_tables, self.queries.tiles

    @property
    def constants(self) -> tuple[int, ...]:
        """See StaticAttention.constants."""
        queries = self.queries
        return *queries.block_tables.shape, len(queries.tiles), queries.tile_rows, queries.num_splits

    def __call__(self, queries: torch.Tensor, kv: LayerKv, shape: AttentionShape) -> torch.Tensor:
        """See StepAttention."""
        return paged_attention(queries, kv, self.queries, shape, self.window)


def _sequences(groups: Sequence[SequenceGroup]) -> Ints:
    """As RaggedQueries.sequences."""
    rows = [
        (first, int(count), int(start), group.num_queries)
        for group in groups
        for first, count, start in zip(group.first_rows, group.counts, group.starts, strict=True)
    ]
    return np.array(rows, dtype=np.int64)


def _block_tables(groups: Sequence[SequenceGroup]) -> Ints:
    """As RaggedQueries.block_tables."""
    width = -(-max(group.blocks.shape[1] for group in groups) // _TABLE_WIDTH) * _TABLE_WIDTH
    return np.concatenate([np.pad(group.blocks, ((0, 0), (0, width - group.blocks.shape[1]))) for group in groups])


def _tiles(groups: Sequence[SequenceGroup], num_queries: int) -> Ints:
    """As RaggedQueries.tiles, of so many queries each; a power of two of them."""
    counts = [group.num_queries for group in groups for _ in group.starts]
    cut = [(sequence, first) for sequence, count in enumerate(counts) for first in range(0, count, num_queries)]
    return np.array(cut + [(-1, 0)] * (triton.next_power_of_2(len(cut)) - len(cut)), dtype=np.int64)


def _on(device: torch.device, numbers: Ints) -> torch.Tensor:
    return on_device(torch.from_numpy(numbers.astype(np.int32)), device)
