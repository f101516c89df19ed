"""PagedBatch: a plan flattened into the arrays that a compiled decoder reads."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import accumulate

from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """What the model computes. Sequences of one adapter stand side by side, else in the plan's order; their tokens one
    after the other.

    All arrays are int64 ("q").
    """

    items: tuple[ScheduledSequence, ...]
    first_rows: tuple[int, ...]
    """Row of each item's first token, [num_sequences]."""
    token_ids: array[int]  # (num_tokens)
    starts: array[int]  # (num_sequences): position of each item's first token
    num_queries: array[int]  # (num_sequences)
    table_offsets: array[int]  # (num_sequences): where each block table begins in block_ids
    block_ids: array[int]  # block tables, one after the other

    @classmethod
    def build(cls, plan: Plan, block_size: int) -> PagedBatch:
        """Flatten `plan`, drafts included.

        Raises:
            IndexError: a sequence has too few blocks for its tokens, which is a bug of the scheduler.
        """
        token_ids, block_ids, table_offsets = array("q"), array("q"), array("q")
        items = _by_adapter(plan.scheduled)
        num_queries = array("q", [item.num_tokens + len(item.draft_token_ids) for item in items])
        for item, count in zip(items, num_queries, strict=True):
            token_ids.extend(item.sequence.token_ids[item.start : item.start + item.num_tokens])
            token_ids.extend(item.draft_token_ids)
            num_blocks = -(-(item.start + count) // block_size)
            table = item.sequence.block_table[:num_blocks]
            if len(table) < num_blocks:
                raise IndexError(f"sequence {item.sequence.sequence_id} has {len(table)} blocks, needs {num_blocks}")
            table_offsets.append(len(block_ids))
            block_ids.extend(table)
        return cls(
            items=items,
            first_rows=tuple(accumulate(num_queries, initial=0))[:-1],
            token_ids=token_ids,
            starts=array("q", [item.start for item in items]),
            num_queries=num_queries,
            table_offsets=table_offsets,
            block_ids=block_ids,
        )

    @property
    def num_tokens(self) -> int:
        """Rows of the step, drafts included."""
        return len(self.token_ids)


def _by_adapter(items: tuple[ScheduledSequence, ...]) -> tuple[ScheduledSequence, ...]:
    if all(item.sequence.adapter is None for item in items):
        return items
    return tuple(sorted(items, key=lambda item: item.sequence.adapter.slot if item.sequence.adapter else 0))
