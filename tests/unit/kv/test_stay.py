"""Cached blocks are evicted in the order that their requests asked for."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.scheduling import make_request
from trierarch.python_backend.kv.block import DEFAULT_STAY, Block
from trierarch.python_backend.kv.block_pool import BlockPool
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.kv.stay import Stay, stay_of
from trierarch.python_backend.request import Request, RetainedRange, Retention
from trierarch.python_backend.sequence import Sequence


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def request_of(prompt: int, **retention: Any) -> Request:
    return make_request("r", prompt, max_tokens=100, retention=Retention(**retention) if retention else None)


def cached(pool: BlockPool, *stays: Stay) -> list[Block]:
    """A block for each, free and keyed, released in this order."""
    blocks = [pool.take() for _ in stays]
    for block, stay in zip(blocks, stays, strict=True):
        block.key, block.stay = b"%d" % block.block_id, stay
        pool.release(block)
    return blocks


def taken(pool: BlockPool, count: int) -> list[int]:
    return [pool.take().block_id for _ in range(count)]


def test_what_is_empty_goes_first_then_the_lowest_priority_then_the_longest_free() -> None:
    pool = BlockPool(6)
    high, low, first, second, empty = cached(pool, *(Stay(p, None) for p in (90, 10, 35, 35)), DEFAULT_STAY)
    pool.hold(empty)
    empty.key = None
    pool.release(empty)
    assert taken(pool, 6)[2:] == [low.block_id, first.block_id, second.block_id, high.block_id]


def test_a_block_whose_time_is_over_is_as_any_other() -> None:
    clock = Clock()
    pool = BlockPool(3, clock)
    kept, held, plain = cached(pool, Stay(90, 5.0), Stay(80, 5.0), DEFAULT_STAY)
    clock.now += 4
    pool.hold(held)
    pool.release(held)  # its time begins anew
    clock.now += 2
    assert pool.eviction_order() == [plain.block_id, held.block_id, kept.block_id]
    assert taken(pool, 2) == [plain.block_id, kept.block_id]
    assert pool.blocks[kept.block_id].stay == DEFAULT_STAY
    assert taken(pool, 1) == [held.block_id]


def test_what_is_noted_of_times_is_bounded() -> None:
    pool = BlockPool(4)
    (block,) = cached(pool, Stay(50, 1e9))
    for _ in range(1000):
        pool.hold(block)
        pool.release(block)
    assert len(pool._leaving) <= 8
    assert taken(pool, 4)[-1] == block.block_id


@pytest.mark.parametrize(
    ("start", "expected"),
    [(0, Stay(80, 2.0)), (4, Stay(80, 2.0)), (8, Stay(20, None)), (12, Stay(60, None)), (16, Stay(60, None))],
)
def test_a_block_stays_as_the_highest_priority_of_its_tokens_says(start: int, expected: Stay) -> None:
    request = request_of(
        14,
        ranges=(RetainedRange(0, 6, 80, 2000), RetainedRange(6, None, 20)),
        decode_priority=60,
    )
    assert stay_of(request, start, start + 4) == expected


def test_nothing_is_said_of_what_no_range_has() -> None:
    assert stay_of(request_of(14), 0, 4) is None
    assert stay_of(request_of(14, ranges=(RetainedRange(0, 4, 80),)), 4, 8) is None
    assert stay_of(request_of(14, ranges=(RetainedRange(0, None, 80),)), 16, 20) is None


def run(kv: KVCacheManager, sequence_id: int, request: Request) -> None:
    """Compute its prompt, and be done."""
    sequence = Sequence(sequence_id, request, 0, list(request.prompt_token_ids))
    kv.start(sequence, kv.match(sequence))
    assert kv.allocate(sequence, sequence.num_tokens)
    kv.advance(sequence, sequence.num_tokens)
    kv.free(sequence)
    kv.check_integrity([])


def test_a_prompt_that_is_retained_outlives_newer_ones() -> None:
    kv = KVCacheManager(8, 4)
    system = (*range(100, 116), 1)
    run(kv, 0, make_request("s", system, retention=Retention(ranges=(RetainedRange(0, 16, 90),))))
    for index in range(10):
        run(kv, index + 1, make_request(str(index), tuple(range(200 + 20 * index, 213 + 20 * index))))
    sequence = Sequence(99, make_request("t", system), 0, list(system))
    assert len(kv.match(sequence)) == 4


def test_who_finds_a_prefix_has_the_last_word_on_it() -> None:
    kv = KVCacheManager(8, 4)
    run(kv, 0, make_request("s", tuple(range(9)), retention=Retention(ranges=(RetainedRange(0, None, 90),))))
    run(kv, 1, make_request("t", tuple(range(9))))
    assert {block.stay.priority for block in kv.pool.blocks if block.key} == {90}
    run(kv, 2, make_request("u", tuple(range(9)), retention=Retention(ranges=(RetainedRange(0, None, 5),))))
    assert {block.stay.priority for block in kv.pool.blocks if block.key} == {5}


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000))
def test_the_order_is_that_of_sorting_by_priority_and_time(seed: int) -> None:
    chance, pool = random.Random(seed), BlockPool(8)
    order = {
        block_id: (-1, block_id) for block_id in range(8)
    }  # of the free ones: priority, and when they were released
    held: list[Block] = []
    for now in range(8, 120):
        assert pool.eviction_order() == sorted(order, key=lambda block_id: order[block_id])
        if held and chance.random() < 0.5:
            block = held.pop(chance.randrange(len(held)))
            block.key, block.stay = b"k", Stay(chance.randrange(4), None)
            pool.release(block)
            order[block.block_id] = (block.stay.priority, now)
        elif order and chance.random() < 0.5:
            block = pool.blocks[chance.choice(list(order))]
            pool.hold(block)
            held.append(block)
            del order[block.block_id]
        elif order:
            held.append(pool.take())
            assert held[-1].block_id == min(order, key=lambda block_id: order[block_id])
            del order[held[-1].block_id]
