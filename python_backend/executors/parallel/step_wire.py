"""What ranks are told of a step: which tokens stand where, in which blocks, computed with which adapter.

How tokens are drawn is rank 0's affair. For the others, and so that all do the same for it too, known tokens and drafts are
all tokens to be computed.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.parallel.sharded_adapters import ShardedAdapter, ShardedAdapters
from trierarch.python_backend.request import Request, SamplingParams
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence

Ints = NDArray[np.int32]

_NOBODY = Request(request_id="", prompt_token_ids=(), sampling=SamplingParams(max_tokens=1), arrival_time=0.0)


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter that takes part in a step."""

    slot: int
    number: int
    """As `ShardedAdapter.number`."""

    @classmethod
    def of(cls, adapter: ActiveAdapter | None) -> AdapterRef | None:
        """None is the base model."""
        if adapter is None:
            return None
        assert isinstance(adapter.weights, ShardedAdapter), "it was arranged by another runner"
        return cls(adapter.slot, adapter.weights.number)

    def restored(self, adapters: ShardedAdapters) -> ActiveAdapter:
        """As this rank has it."""
        return ActiveAdapter("", self.slot, adapters.of(self.number))


@dataclass(frozen=True, slots=True)
class StepWire:
    """A plan's sequences, in its order; what belongs to each stands behind what belongs to the one before."""

    starts: Ints  # (n): position of each one's first token
    num_tokens: Ints  # (n)
    token_ids: Ints  # (sum of num_tokens)
    num_blocks: Ints  # (n)
    block_ids: Ints  # (sum of num_blocks)
    adapters: tuple[AdapterRef | None, ...]  # (n)

    @classmethod
    def of(cls, plan: Plan, block_size: int) -> StepWire:
        """Raise ValueError where a sequence has too few blocks, before anybody is told of the step."""
        tokens = [_tokens(item) for item in plan.scheduled]
        blocks = [_blocks(item, len(own), block_size) for item, own in zip(plan.scheduled, tokens, strict=True)]
        return cls(
            _ints([item.start for item in plan.scheduled]),
            _ints([len(own) for own in tokens]),
            _ints([token for own in tokens for token in own]),
            _ints([len(own) for own in blocks]),
            _ints([block for own in blocks for block in own]),
            tuple(AdapterRef.of(item.sequence.adapter) for item in plan.scheduled),
        )

    def restored(self, adapters: ShardedAdapters) -> Plan:
        """A plan that computes the same. A sequence's id is its place in the plan that was sent."""
        tokens, blocks = _parted(self.token_ids, self.num_tokens), _parted(self.block_ids, self.num_blocks)
        return Plan(
            tuple(
                ScheduledSequence(
                    Sequence(
                        place,
                        _NOBODY,
                        0,
                        [],
                        block_table=its_blocks,
                        adapter=None if ref is None else ref.restored(adapters),
                    ),
                    start,
                    0,
                    tuple(its_tokens),
                )
                for place, (start, its_tokens, its_blocks, ref) in enumerate(
                    zip(self.starts.tolist(), tokens, blocks, self.adapters, strict=True)
                )
            )
        )


def _tokens(item: ScheduledSequence) -> list[int]:
    return [*item.sequence.token_ids[item.start : item.start + item.num_tokens], *item.draft_token_ids]


def _blocks(item: ScheduledSequence, num_tokens: int, block_size: int) -> list[int]:
    num_blocks = -(-(item.start + num_tokens) // block_size)
    held = item.sequence.block_table[:num_blocks]
    if len(held) < num_blocks:
        raise ValueError(f"sequence {item.sequence.sequence_id} has {len(held)} of {num_blocks} blocks")
    return held


def _ints(values: Rows[int]) -> Ints:
    return np.array(values, dtype=np.int32)


def _parted(values: Ints, counts: Ints) -> list[list[int]]:
    flat = values.tolist()
    ends = [0, *np.cumsum(counts).tolist()]
    return [flat[begin:end] for begin, end in pairwise(ends)]
