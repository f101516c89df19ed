"""StaticStep: decode steps of one size in tensors that stay where they are, so that a device can be shown them once.

A step is filled up to a size: to a number of sequences, and of rows for each. What is filled in is nobody's: token 0 at
position 0, in the block that pads, seen by no query of a sequence. Its rows are never read, and its keys and values are
zeroed again in the same step, since attention elsewhere counts on zeros there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from trierarch.python_backend.executors.torch.adapted_rows import (
    StaticAdaptedRows,
    StaticAdapterBackend,
    rows_of_step,
)
from trierarch.python_backend.executors.torch.attention_backend import (
    StaticAttention,
    StaticAttentionBackend,
    StepAttention,
)
from trierarch.python_backend.executors.torch.attention_tile import BlockShape, SequenceGroup
from trierarch.python_backend.executors.torch.input_batch import InputBatch, group_of, num_queries_of
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.scheduling.plan import ScheduledSequence

_FIRST_SIZES: Final = (1, 2, 4, 8)
_CHEAP_ROWS: Final = 64
"""A step of so few waits for its weights and not for its products, so that padding is free. By no measurement yet."""
_MOST_PADDING: Final = 2
"""Rows of a larger step, for each that is somebody's."""

Decode = Callable[[InputBatch, KvArrays], list[torch.Tensor]]
"""Hidden states of all tokens, (num_tokens, hidden) each: a decoder's, and those that are tapped."""
CPU: Final = torch.device("cpu")


def size_of(count: int) -> int:
    """Sequences of the static step that `count` go into: 1, 2, 4, then multiples of 8, from 128 on of ever larger units."""
    for size in _FIRST_SIZES:
        if count <= size:
            return size
    unit = max(8, (1 << (count - 1).bit_length() - 1) // 8)
    return -(-count // unit) * unit


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a static step has room for."""

    num_sequences: int
    num_queries: int
    """Of each."""


@dataclass(frozen=True, slots=True)
class StepLayout:
    """What all static steps of a model have in common."""

    windows: frozenset[int | None]
    shape: BlockShape
    dtype: torch.dtype
    """Of activations."""
    table_width: int
    """Blocks that a sequence may have; a step that needs more is one of another key."""
    max_queries: int
    """Of a sequence in a step: those of prompts are more, and run eagerly."""
    attention: StaticAttentionBackend
    adapters: StaticAdapterBackend | None
    """None: steps with adapters run eagerly."""

    def size(self, items: Sequence[ScheduledSequence]) -> StepSize | None:
        """Of the static step that they go into; None where they are to run eagerly.

        That is where a sequence has more queries than `max_queries`, where padding would cost too much, and where there is
        an adapter that cannot be recorded.
        """
        counts = [num_queries_of(item) for item in items]
        if not counts or max(counts) > self.max_queries:
            return None
        if self.adapters is None and any(item.sequence.adapter is not None for item in items):
            return None
        size = StepSize(size_of(len(items)), self.num_queries_of(max(counts)))
        num_rows = size.num_sequences * size.num_queries
        return size if num_rows <= max(_CHEAP_ROWS, _MOST_PADDING * sum(counts)) else None

    def num_queries_of(self, count: int) -> int:
        """Queries of each sequence in a step where the most that one has is `count`."""
        return min(size_of(count), self.max_queries)

    def padded(self, items: Sequence[ScheduledSequence], size: StepSize, device: torch.device) -> InputBatch:
        """`items` filled up to their `size`, on `device`."""
        own = group_of(list(items), 0, size.num_queries, self.shape)
        num_sequences, num_blocks = own.blocks.shape
        missing = size.num_sequences - num_sequences
        width = max(self.table_width, num_blocks)
        blocks = np.full((size.num_sequences, width), self.shape.padding_block, dtype=np.int64)
        blocks[:num_sequences, :num_blocks] = own.blocks
        group = SequenceGroup(
            0, size.num_queries, np.pad(own.starts, (0, missing)), blocks, np.pad(own.counts, (0, missing))
        )
        batch = InputBatch.of_groups([group], items, self.windows, self.shape, self.dtype, device, self.attention)
        owned = rows_of_step(items, batch.first_rows)
        if not owned:
            return batch
        assert self.adapters is not None, "such a step has no size"
        return replace(batch, adapted=self.adapters.adapt_static(owned, batch.num_tokens, device))


def key_of(batch: InputBatch) -> tuple[object, ...]:
    """Batches with the same key have tensors of the same shapes, and are computed by the same operators."""
    attention = [(window, static_of(one).constants) for window, one in batch.attention.items()]
    adapted = () if batch.adapted is None else adapted_of(batch.adapted).constants
    return batch.num_tokens, *sorted(attention, key=repr), adapted


def static_of(attention: StepAttention) -> StaticAttention:
    """What a static layout's batches hold."""
    assert isinstance(attention, StaticAttention), "the layout's attention is static"
    return attention


def adapted_of(adapted: object) -> StaticAdaptedRows:
    """Likewise."""
    assert isinstance(adapted, StaticAdaptedRows), "the layout's adapters are static"
    return adapted


class StaticStep:
    """Steps of one key. `run` computes what is in its tensors, and may be recorded."""

    def __init__(self, batch: InputBatch, kv: KvArrays, decode: Decode) -> None:
        """batch: the first step, on the device; its tensors become this step's."""
        self._batch = replace(batch, items=(), first_rows=())  # no sequence is kept alive
        self._kv = kv
        self._decode = decode
        self._padding = torch.tensor([kv.padding_block], device=batch.token_ids.device)

    def fill(self, batch: InputBatch) -> None:
        """Make it the step `batch`, of the same key, on the CPU."""
        for mine, theirs in zip(_tensors(self._batch), _tensors(batch), strict=True):
            assert mine.shape == theirs.shape, "batches of one key have the same shapes"
            mine.copy_(theirs, non_blocking=True)
        if batch.late is not None:
            batch.late.put(self._batch.token_ids)

    def run(self) -> list[torch.Tensor]:
        """Hidden states as Decode gives them, padding among them and behind."""
        states = self._decode(self._batch, self._kv)
        self._kv.clear(self._padding)
        return states


def _tensors(batch: InputBatch) -> list[torch.Tensor]:
    """All that a decoder reads of a batch, none twice."""
    found = [batch.token_ids, batch.positions, batch.kv_rows]
    found += [
        tensor for window in sorted(batch.attention, key=repr) for tensor in static_of(batch.attention[window]).tensors
    ]
    if batch.adapted is not None:
        found += adapted_of(batch.adapted).tensors
    return list({id(tensor): tensor for tensor in found}.values())
