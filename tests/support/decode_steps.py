"""Random decode steps over blocks whose other slots are poisoned: recorded and not."""

from __future__ import annotations

import random
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from support.graphs import StaticRunner
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.request import Request, SamplingParams
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Shape:
    """What steps may hold."""

    sequences: tuple[int, int]
    """At least and at most."""
    drafts: Rows[int] = (0,)
    """Of a sequence."""
    adapters: Rows[Any] = ()
    """As a runner arranged them, in slots 1 and on; about a third of sequences have none."""


def random_plan(shape: Shape, seed: int, block_size: int = 4, num_blocks: int = 64) -> Plan:
    """Sequences of 1 to 20 known tokens in shuffled blocks, all but the last of them computed."""
    rng = random.Random(seed)
    free = rng.sample(range(num_blocks), num_blocks)
    items = []
    for index in range(rng.randint(*shape.sequences)):
        tokens = [rng.randrange(50) for _ in range(rng.randint(1, 20))]
        drafts = tuple(rng.randrange(50) for _ in range(rng.choice(shape.drafts)))
        request = Request(
            request_id=str(index),
            prompt_token_ids=tuple(tokens),
            sampling=SamplingParams(max_tokens=1),
            arrival_time=0.0,
        )
        sequence = Sequence(index, request, 0, tokens)
        sequence.block_table = [free.pop() for _ in range(-(-(len(tokens) + len(drafts)) // block_size))]
        slot = rng.randint(-len(shape.adapters) // 2, len(shape.adapters))
        if slot > 0:
            sequence.adapter = ActiveAdapter(str(slot), slot, shape.adapters[slot - 1])
        items.append(ScheduledSequence(sequence, len(tokens) - 1, 1, drafts, samples=True))
    return Plan(tuple(items))


def prepare(kv: KvArrays, plan: Plan, poison: float, seed: int, block_size: int = 4) -> None:
    """Random keys and values where the plan's sequences have theirs, `poison` everywhere else."""
    kv.array.fill_(poison)
    generator = torch.Generator().manual_seed(seed)
    for item in plan.scheduled:
        blocks = item.sequence.block_table
        shape = (*kv.array.shape[:2], len(blocks), *kv.array.shape[3:])
        noise = torch.randn(shape, generator=generator)
        is_known = torch.arange(len(blocks) * block_size).view(-1, 1, block_size, 1) < item.start
        kv.array[:, :, blocks] = noise.where(is_known, torch.full_like(noise, poison)).to(kv.array.device)


@torch.inference_mode()
def check_step(runner: StaticRunner, reference: StaticRunner, plan: Plan, seed: int, poison: float) -> None:
    """Both compute the same rows and leave the same behind, in every block but the one that pads, which is zero."""
    assert runner.graphs is not None
    for kv in (runner.kv, reference.kv):
        prepare(kv, plan, poison, seed)
    with mock.patch.object(runner.model, "compute", side_effect=AssertionError("it ran eagerly")):
        found = runner.graphs.compute(plan)
    expected = reference.model.compute(plan, reference.kv)
    mine, theirs = StaticRunner.rows_of(found), StaticRunner.rows_of(expected)
    assert mine.keys() == theirs.keys()
    for sequence_id, rows in theirs.items():
        torch.testing.assert_close(mine[sequence_id].cpu(), rows.cpu(), rtol=1e-4, atol=1e-4)
    mine_left, theirs_left = (one.kv.array[:, :, : one.kv.num_blocks].cpu() for one in (runner, reference))
    torch.testing.assert_close(mine_left, theirs_left, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert mine_left.isnan().equal(theirs_left.isnan())
