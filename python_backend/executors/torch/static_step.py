"""StaticStep: decode steps of one size in tensors that stay where they are, so that a device can be shown them once.

A step of n sequences, each of which computes equally many tokens, is filled up to a size with sequences that nobody asked
for: token 0 at position 0, in the block that pads. Their rows are never read, and their keys and values are zeroed again in
the same step, since attention elsewhere counts on zeros there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from trierarch.python_backend.executors.torch.attention_backend import (
    StaticAttention,
    StaticAttentionBackend,
    StepAttention,
)
from trierarch.python_backend.executors.torch.attention_tile import BlockShape, SequenceGroup
from trierarch.python_backend.executors.torch.input_batch import InputBatch, group_of, num_queries_of
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence

_FIRST_SIZES: Final = (1, 2, 4, 8)

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
class StepLayout:
    """What all static steps of a model have in common."""

    windows: frozenset[int | None]
    shape: BlockShape
    dtype: torch.dtype
    """Of activations."""
    table_width: int
    """Blocks that a sequence may have; a step that needs more is one of another key."""
    attention: StaticAttentionBackend

    def padded(self, items: Sequence[ScheduledSequence], device: torch.device) -> InputBatch:
        """`items`, all of equally many tokens, filled up to their size."""
        num_queries = num_queries_of(items[0])
        own = group_of(list(items), 0, num_queries, self.shape)
        size = size_of(len(items))
        starts = np.zeros(size, dtype=np.int64)
        starts[: len(items)] = own.starts
        width = max(self.table_width, own.blocks.shape[1])
        blocks = np.full((size, width), self.shape.padding_block, dtype=np.int64)
        blocks[: len(items), : own.blocks.shape[1]] = own.blocks
        group = SequenceGroup(0, num_queries, starts, blocks)
        return InputBatch.of_groups([group], items, self.windows, self.shape, self.dtype, device, self.attention)


def is_static(plan: Plan) -> bool:
    """Whether all sequences compute equally many tokens, only one of each known before, and none has an adapter."""
    items = plan.scheduled
    return bool(items) and all(
        item.num_tokens == 1
        and item.sequence.adapter is None
        and len(item.draft_token_ids) == len(items[0].draft_token_ids)
        for item in items
    )


def key_of(batch: InputBatch) -> tuple[object, ...]:
    """Batches with the same key have tensors of the same shapes, and are computed by the same operators."""
    attention = [(window, static_of(one).constants) for window, one in batch.attention.items()]
    return batch.num_tokens, *sorted(attention, key=repr)


def static_of(attention: StepAttention) -> StaticAttention:
    """What a static layout's batches hold."""
    assert isinstance(attention, StaticAttention), "the layout's attention is static"
    return attention


class StaticStep:
    """Steps of one key. `run` computes what is in its tensors, and may be recorded."""

    def __init__(self, batch: InputBatch, kv: KvArrays, decode: Decode) -> None:
        """batch: the first step, on the device; its tensors become this step's."""
        self._batch = replace(batch, items=(), first_rows=())  # nobody's adapter, and no sequence is kept alive
        self._kv = kv
        self._decode = decode
        self._padding = torch.tensor([kv.padding_block], device=batch.token_ids.device)

    def fill(self, batch: InputBatch) -> None:
        """Make it the step `batch`, of the same key, on the CPU."""
        for mine, theirs in zip(_tensors(self._batch), _tensors(batch), strict=True):
            assert mine.shape == theirs.shape, "batches of one key have the same shapes"
            mine.copy_(theirs, non_blocking=True)

    def run(self) -> list[torch.Tensor]:
        """Hidden states as Decode gives them, padding behind."""
        states = self._decode(self._batch, self._kv)
        self._kv.clear(self._padding)
        return states


def _tensors(batch: InputBatch) -> list[torch.Tensor]:
    """All that a decoder reads of a batch, none twice."""
    found = [batch.token_ids, batch.positions, batch.kv_rows]
    found += [
        tensor for window in sorted(batch.attention, key=repr) for tensor in static_of(batch.attention[window]).tensors
    ]
    return list({id(tensor): tensor for tensor in found}.values())
