from __future__ import annotations

import pytest

from trierarch.python_backend.kv.block_pool import BlockPool


def test_blocks_are_taken_in_order_and_each_once() -> None:
    pool = BlockPool(3)
    assert [pool.take().block_id for _ in range(3)] == [0, 1, 2]
    assert pool.num_free_blocks == 0
    with pytest.raises(KeyError):
        pool.take()


def test_a_block_is_free_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(2)
    block = pool.take()
    pool.hold(block)
    pool.release(block)
    assert pool.eviction_order() == [1]
    pool.release(block)
    assert pool.eviction_order() == [0, 1]


def test_blocks_that_hold_nothing_are_evicted_before_cached_ones_and_those_longest_free_first() -> None:
    pool = BlockPool(5)
    blocks = [pool.take() for _ in range(4)]
    blocks[1].key, blocks[2].key = b"one", b"two"
    for block in (blocks[2], blocks[0], blocks[1], blocks[3]):
        pool.release(block)
    assert pool.eviction_order() == [3, 0, 4, 2, 1]


def test_a_cached_block_can_be_taken_from_the_middle() -> None:
    pool = BlockPool(3)
    blocks = [pool.take() for _ in range(3)]
    for block in blocks:
        block.key = bytes([block.block_id])
        pool.release(block)
    pool.hold(blocks[1])
    assert blocks[1].ref_count == 1
    assert pool.eviction_order() == [0, 2]


def test_a_pool_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="num_blocks is 0"):
        BlockPool(0)
