"""InputBatch: a plan flattened into the arrays of one step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trierarch.python_backend.executors.torch.adapted_rows import AdaptedRows
from trierarch.python_backend.executors.torch.attention_backend import AnyAttentionBackend, StepAttention
from trierarch.python_backend.executors.torch.attention_tile import BlockShape, SequenceGroup
from trierarch.python_backend.executors.torch.device import on_device
from trierarch.python_backend.executors.torch.drawn_tokens import LateTokens
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence

_SHORT_CONTEXT_BITS = 3
"""Contexts of fewer than 2**3 blocks are batched whatever their length."""


@dataclass(frozen=True, slots=True)
class InputBatch:
    """What the model computes. Sequences stand in the order of `items`, their tokens one after the other."""

    items: tuple[ScheduledSequence, ...]
    first_rows: tuple[int, ...]
    """Row of each item's first token, [num_sequences]."""
    token_ids: torch.Tensor  # (num_tokens) int64
    positions: torch.Tensor  # (num_tokens) int64
    kv_rows: torch.Tensor  # (num_tokens * num_kv_heads) int64: where LayerKv.write puts each token's heads
    fresh_blocks: torch.Tensor  # (n) int64: blocks whose first slot is written
    attention: Mapping[int | None, StepAttention]
    """A layer's window -> its attention."""
    adapted: AdaptedRows | None = None
    """What adapters add, where it was worked out with the batch; else the decoder works it out of `items`."""
    late: LateTokens | None = None
    """What is to be put among the token ids once they are on the device."""

    @property
    def num_tokens(self) -> int:
        """Rows of the step, drafts included."""
        return len(self.token_ids)

    @classmethod
    def build(
        cls,
        plan: Plan,
        windows: Iterable[int | None],
        shape: BlockShape,
        dtype: torch.dtype,
        device: torch.device,
        attention: AnyAttentionBackend,
    ) -> InputBatch:
        """Flatten `plan` for a model whose layers have these `windows`, with activations of `dtype`."""
        items: list[ScheduledSequence] = []
        groups: list[SequenceGroup] = []
        num_tokens = 0
        for (num_queries, _), members in _grouped(plan.scheduled, shape.block_size).items():
            groups.append(group_of(members, num_tokens, num_queries, shape))
            items += members
            num_tokens += num_queries * len(members)
        return cls.of_groups(groups, items, windows, shape, dtype, device, attention)

    @classmethod
    def of_groups(
        cls,
        groups: Sequence[SequenceGroup],
        items: Sequence[ScheduledSequence],
        windows: Iterable[int | None],
        shape: BlockShape,
        dtype: torch.dtype,
        device: torch.device,
        attention: AnyAttentionBackend,
    ) -> InputBatch:
        """The same of groups that hold `items` in their order, and behind them sequences that nobody asked for."""
        first_rows = [first for group in groups for first in group.first_rows][: len(items)]
        token_ids = [0] * groups[-1].rows.stop
        for item, first in zip(items, first_rows, strict=True):
            tokens = token_ids_of(item)
            token_ids[first : first + len(tokens)] = tokens
        positions = np.concatenate([group.positions.ravel() for group in groups])
        blocks = np.concatenate([group.token_blocks(shape).ravel() for group in groups])
        offsets = positions % shape.block_size
        heads = np.arange(shape.num_kv_heads)
        kv_rows = (blocks[:, None] * shape.num_kv_heads + heads) * shape.block_size + offsets[:, None]
        return cls(
            items=tuple(items),
            first_rows=tuple(first_rows),
            token_ids=on_device(torch.tensor(token_ids, dtype=torch.int64), device),
            positions=on_device(torch.from_numpy(positions), device),
            kv_rows=on_device(torch.from_numpy(kv_rows.ravel()), device),
            fresh_blocks=on_device(torch.from_numpy(blocks[offsets == 0]), device),
            attention=attention.of_step(groups, frozenset(windows), shape, dtype, device),
        )


def _grouped(items: Iterable[ScheduledSequence], block_size: int) -> dict[tuple[int, int], list[ScheduledSequence]]:
    """(tokens computed, bits of the number of blocks) -> sequences. Padding at most doubles what a group reads."""
    groups: dict[tuple[int, int], list[ScheduledSequence]] = defaultdict(list)
    for item in items:
        num_queries = num_queries_of(item)
        num_blocks = -(-(item.start + num_queries) // block_size)
        groups[num_queries, max(num_blocks.bit_length(), _SHORT_CONTEXT_BITS)].append(item)
    return groups


def group_of(members: list[ScheduledSequence], first_row: int, num_queries: int, shape: BlockShape) -> SequenceGroup:
    """Sequences that compute up to `num_queries` tokens each, the first of them in row `first_row`."""
    counts = [num_queries_of(item) for item in members]
    ends = [item.start + count for item, count in zip(members, counts, strict=True)]
    blocks = np.full((len(members), -(-max(ends) // shape.block_size)), shape.padding_block, dtype=np.int64)
    for row, item, end in zip(blocks, members, ends, strict=True):
        num_blocks = -(-end // shape.block_size)
        held = item.sequence.block_table[:num_blocks]
        if len(held) < num_blocks:
            raise ValueError(f"sequence {item.sequence.sequence_id} has {len(held)} blocks for {end} tokens")
        row[:num_blocks] = held
    starts = np.array([item.start for item in members], dtype=np.int64)
    return SequenceGroup(first_row, num_queries, starts, blocks, np.array(counts, dtype=np.int64))


def num_queries_of(item: ScheduledSequence) -> int:
    """Tokens that a step computes for it, drafts included."""
    return item.num_tokens + len(item.draft_token_ids)


def token_ids_of(item: ScheduledSequence) -> list[int]:
    """These tokens; 0 in the place of one that is late."""
    known = item.sequence.token_ids[item.start : item.end]
    return [*known, *[0] * (item.num_tokens - len(known)), *item.draft_token_ids]
