"""The padded, grouped, tiled attention against one sequence, one head and one query at a time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from support.random_engine import tiny_architecture
from trierarch.builder.manifest import KvCache, KvType
from trierarch.python_backend.executors.torch import attention_tile
from trierarch.python_backend.executors.torch.attention import Attention, attend_reference
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.request import Request, SamplingParams
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence

BLOCK_SIZE, NUM_BLOCKS, HEADS, KV_HEADS, HEAD_DIM = 4, 200, 6, 2, 8
CPU = torch.device("cpu")


def ragged_plan(seed: int) -> Plan:
    """Sequences that decode, begin, go on mid-prompt, or verify drafts, in shuffled blocks."""
    rng = random.Random(seed)
    free = rng.sample(range(NUM_BLOCKS), NUM_BLOCKS)
    items = []
    for index in range(rng.randint(1, 9)):
        start, num_tokens, num_drafts = rng.choice(
            [
                (rng.randint(1, 60), 1, 0),
                (0, rng.randint(1, 40), 0),
                (rng.randint(1, 30), rng.randint(2, 20), 0),
                (9, 1, 3),
            ]
        )
        end = start + num_tokens
        tokens = [rng.randrange(50) for _ in range(end)]
        request = Request(
            request_id=str(index),
            prompt_token_ids=tuple(tokens),
            sampling=SamplingParams(max_tokens=1),
            arrival_time=0.0,
        )
        sequence = Sequence(index, request, 0, tokens)
        sequence.block_table = [free.pop() for _ in range(-(-(end + num_drafts) // BLOCK_SIZE))]
        items.append(ScheduledSequence(sequence, start, num_tokens, tuple(range(num_drafts)), samples=True))
    return Plan(tuple(items))


@pytest.mark.parametrize("window", [None, 1, 3, 16])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_reference(
    seed: int, softcap: float | None, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_tile, "MAX_QUERIES", 7)  # so that short prompts are cut too
    plan = ragged_plan(seed)
    torch.manual_seed(seed)
    architecture = tiny_architecture(num_heads=HEADS, num_kv_heads=KV_HEADS)
    kv_cache = KvCache(dtype=KvType.FLOAT32, block_size=BLOCK_SIZE, bytes_per_token=1)
    layer = (arrays := KvArrays(NUM_BLOCKS, architecture, kv_cache, CPU)).layers[0]
    shape = BlockShape(BLOCK_SIZE, KV_HEADS, arrays.padding_block)

    # What each sequence computed earlier is written by a batch of its own, then the step itself.
    ends = [item.start + item.num_tokens + len(item.draft_token_ids) for item in plan.scheduled]
    keys, values = ([torch.randn(end, KV_HEADS, HEAD_DIM) for end in ends] for _ in range(2))
    for item, its_keys, its_values in zip(plan.scheduled, keys, values, strict=True):
        if item.start:
            earlier = replace(item, start=0, num_tokens=item.start, draft_token_ids=())
            rows = InputBatch.build(Plan((earlier,)), {window}, shape, torch.float32, CPU).kv_rows
            layer.write(rows, its_keys[: item.start], its_values[: item.start])
    batch = InputBatch.build(plan, {window}, shape, torch.float32, CPU)
    order = [plan.scheduled.index(item) for item in batch.items]
    layer.write(
        batch.kv_rows,
        torch.cat([keys[index][plan.scheduled[index].start :] for index in order]),
        torch.cat([values[index][plan.scheduled[index].start :] for index in order]),
    )

    queries = torch.randn(batch.num_tokens, HEADS, HEAD_DIM)
    attended = Attention(KV_HEADS, 0.7, softcap)(queries, layer, batch.attention[window])

    for index, first_row in zip(order, batch.first_rows, strict=True):
        start = plan.scheduled[index].start
        mine = slice(first_row, first_row + ends[index] - start)
        expected = attend_reference(queries[mine], keys[index], values[index], start, 0.7, softcap, window)
        torch.testing.assert_close(attended[mine].view_as(expected), expected)
