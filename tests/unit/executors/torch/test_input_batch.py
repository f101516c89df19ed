"""A plan worked out by hand: blocks of 4 tokens, 2 KV heads, block 99 pads."""

from __future__ import annotations

import torch

from support.scheduling import make_request
from trierarch.python_backend.executors.torch.attention import EagerAttention
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence

SHAPE = BlockShape(block_size=4, num_kv_heads=2, padding_block=99)
INF = float("inf")


def scheduled(
    sequence_id: int, token_ids: list[int], blocks: list[int], start: int, drafts: tuple[int, ...] = ()
) -> ScheduledSequence:
    sequence = Sequence(sequence_id, make_request(str(sequence_id), tuple(token_ids)), 0, token_ids)
    sequence.block_table = blocks
    return ScheduledSequence(sequence, start, len(token_ids) - start, drafts, samples=True)


def build(*items: ScheduledSequence, window: int | None = None) -> InputBatch:
    return InputBatch.build(Plan(items), {None, window}, SHAPE, torch.float32, torch.device("cpu"), EagerAttention())


def test_one_token_each_in_one_padded_tile() -> None:
    batch = build(
        scheduled(1, [10, 11, 12, 13, 14, 15], [7, 3], start=5),
        scheduled(2, [20], [5], start=0),
    )
    assert batch.token_ids.tolist() == [15, 20]
    assert batch.positions.tolist() == [5, 0]
    assert batch.first_rows == (0, 1)
    # Row of a head's slot: (block * 2 + head) * 4 + offset.
    assert batch.kv_rows.tolist() == [3 * 8 + 1, 3 * 8 + 4 + 1, 5 * 8, 5 * 8 + 4]
    assert batch.fresh_blocks.tolist() == [5]
    (tile,) = batch.attention[None].tiles
    assert (tile.rows, tile.num_sequences, tile.num_queries, tile.queries) == (slice(0, 2), 2, 1, slice(0, 1))
    assert tile.kv_tiles.tolist() == [[[14, 6], [15, 7]], [[10, 198], [11, 199]]]
    assert tile.mask.shape == (2, 1, 1, 1, 8)
    assert tile.mask[0].flatten().tolist() == [0] * 6 + [-INF] * 2
    assert tile.mask[1].flatten().tolist() == [0] + [-INF] * 7


def test_a_window_leaves_out_the_blocks_behind_it() -> None:
    batch = build(scheduled(1, list(range(10)), [7, 3, 8], start=9), window=3)
    (tile,) = batch.attention[3].tiles
    assert tile.kv_tiles.tolist() == [[[6, 16], [7, 17]]]  # blocks 3 and 8: positions 4 to 11
    assert tile.mask.flatten().tolist() == [-INF] * 3 + [0] * 3 + [-INF] * 2  # 7, 8 and 9
    assert batch.attention[None].tiles[0].kv_tiles.shape == (1, 2, 3)


def test_sequences_of_alike_length_stand_together_whatever_the_plans_order() -> None:
    decode, prompt = scheduled(1, [1, 2, 3], [0], start=2), scheduled(2, [4, 5, 6], [1], start=0)
    other, drafting = scheduled(3, [7, 8], [2], start=1), scheduled(4, [9, 9], [4, 6], start=1, drafts=(30, 31))
    batch = build(decode, prompt, other, drafting)
    assert batch.items == (decode, other, prompt, drafting)
    assert batch.first_rows == (0, 1, 2, 5)
    assert batch.token_ids.tolist() == [3, 8, 4, 5, 6, 9, 30, 31]
    assert batch.positions.tolist() == [2, 1, 0, 1, 2, 1, 2, 3]
    alone, together = batch.attention[None].tiles  # three tokens a sequence make a group, be they prompt or drafts
    assert (alone.rows, together.rows) == (slice(0, 2), slice(2, 8))
    causal = [[0, -INF, -INF, -INF], [0, 0, -INF, -INF], [0, 0, 0, -INF]]
    assert together.mask[0, 0, 0].tolist() == causal
    assert together.mask[1, 0, 0].tolist() == [[0, 0, -INF, -INF], [0, 0, 0, -INF], [0, 0, 0, 0]]


def test_a_long_context_does_not_pad_the_short_ones() -> None:
    long = scheduled(1, list(range(400)), list(range(100, 200)), start=399)
    batch = build(scheduled(2, [1, 2], [0], start=1), long, scheduled(3, [1, 2, 3], [1], start=2))
    assert [tuple(tile.kv_tiles.shape) for tile in batch.attention[None].tiles] == [(2, 2, 1), (1, 2, 100)]
