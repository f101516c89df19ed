from __future__ import annotations

import itertools
from typing import Any

import pytest

from support.memory_adapters import make_adapter
from support.scheduling import make_request
from trierarch.python_backend.kv.integrity import IntegrityError
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.sequence import Sequence

_ids = itertools.count()


def make_sequence(prompt: tuple[int, ...] | int, **fields: Any) -> Sequence:
    request = make_request("r", prompt, **fields)
    return Sequence(next(_ids), request, 0, list(request.prompt_token_ids))


def compute(kv: KVCacheManager, sequence: Sequence, num_tokens: int) -> None:
    """Start at what is there already and compute the rest of the first `num_tokens` tokens."""
    kv.start(sequence, kv.match(sequence))
    assert kv.allocate(sequence, num_tokens)
    kv.advance(sequence, num_tokens)


def test_blocks_cover_the_tokens_and_no_more() -> None:
    kv = KVCacheManager(num_blocks=10, block_size=4)
    sequence = make_sequence(9)
    compute(kv, sequence, 9)
    assert sequence.block_table == [0, 1, 2]
    sequence.token_ids += [50, 51, 52]
    assert kv.allocate(sequence, 12)
    assert sequence.block_table == [0, 1, 2]
    assert kv.allocate(sequence, 13)
    assert sequence.block_table == [0, 1, 2, 3]
    assert (kv.num_used_blocks, kv.num_free_blocks) == (4, 6)


def test_allocation_is_all_or_nothing() -> None:
    kv = KVCacheManager(num_blocks=2, block_size=4)
    sequence = make_sequence(9)
    kv.start(sequence, [])
    assert not kv.allocate(sequence, 9)
    assert sequence.block_table == []
    assert kv.num_free_blocks == 2


def test_an_equal_prompt_starts_from_the_full_blocks_of_the_first() -> None:
    kv = KVCacheManager(num_blocks=10, block_size=4)
    first, second = make_sequence(11), make_sequence(11)
    compute(kv, first, 11)
    assert kv.match(second) == [0, 1]
    compute(kv, second, 11)
    assert second.block_table == [0, 1, 3]
    assert second.num_cached_tokens == 8
    assert (second.num_reused_blocks, second.num_new_blocks, kv.num_reused_blocks) == (2, 1, 2)
    kv.check_integrity([first, second])


def test_a_full_hit_leaves_the_last_token_to_compute() -> None:
    kv = KVCacheManager(num_blocks=10, block_size=4)
    compute(kv, make_sequence(8), 8)
    assert kv.match(make_sequence(8)) == [0]
    assert kv.match(make_sequence(9)) == [0, 1]


def test_only_computed_blocks_are_found() -> None:
    kv = KVCacheManager(num_blocks=10, block_size=4)
    sequence = make_sequence(12)
    kv.start(sequence, [])
    assert kv.allocate(sequence, 12)
    kv.advance(sequence, 7)
    assert kv.match(make_sequence(12)) == [0]


@pytest.mark.parametrize("other", [{"adapter": make_adapter("x")}, {"cache_salt": "s"}])
def test_another_adapter_or_salt_shares_nothing(other: dict[str, Any]) -> None:
    kv = KVCacheManager(num_blocks=10, block_size=4)
    compute(kv, make_sequence(9), 9)
    assert kv.match(make_sequence(9, **other)) == []


def test_freed_blocks_stay_cached_until_their_turn_and_prefixes_lose_their_end_first() -> None:
    kv = KVCacheManager(num_blocks=4, block_size=4)
    first = make_sequence(13)
    compute(kv, first, 13)
    kv.free(first)
    assert first.block_table == []
    assert kv.pool.eviction_order() == [3, 2, 1, 0]
    assert kv.match(make_sequence(13)) == [0, 1, 2]
    other = make_sequence((99,) * 5)
    compute(kv, other, 5)
    assert other.block_table == [3, 2]
    assert kv.match(make_sequence(13)) == [0, 1]
    kv.check_integrity([other])


def test_a_hit_on_free_blocks_takes_them_out_of_the_eviction_order() -> None:
    kv = KVCacheManager(num_blocks=4, block_size=4)
    first, second = make_sequence(13), make_sequence(9)
    compute(kv, first, 13)
    kv.free(first)
    kv.start(second, kv.match(second))
    assert kv.pool.eviction_order() == [3, 2]
    prefix = kv.match(make_sequence(13))
    assert prefix == [0, 1, 2]
    assert kv.can_start(prefix, num_tokens=13, num_reserved_blocks=0)
    assert not kv.can_start(prefix, num_tokens=13, num_reserved_blocks=1)


def test_a_sibling_shares_the_prompt_without_any_cache() -> None:
    kv = KVCacheManager(num_blocks=10, block_size=4, enable_prefix_caching=False)
    leader, sibling = make_sequence(10), make_sequence(10)
    compute(kv, leader, 10)
    leader.token_ids += [50, 51, 52]
    assert kv.allocate(leader, 12)
    kv.advance(leader, 12)
    assert kv.match(sibling) == []
    kv.start(sibling, kv.match(sibling, [leader]))
    assert sibling.block_table == [0, 1]
    assert kv.pool.blocks[0].ref_count == 2
    kv.free(leader)
    assert kv.num_used_blocks == 2
    kv.check_integrity([sibling])


def test_draft_room_not_needed_is_given_back() -> None:
    kv = KVCacheManager(num_blocks=10, block_size=4)
    sequence = make_sequence(7)
    kv.start(sequence, [])
    assert kv.allocate(sequence, 7 + 6)
    assert len(sequence.block_table) == 4
    sequence.token_ids += [50, 51]
    kv.advance(sequence, 8)
    assert sequence.block_table == [0, 1]
    assert kv.match(make_sequence((*range(1, 8), 50, 9))) == [0, 1]


def test_used_slots_count_shared_blocks_once() -> None:
    kv = KVCacheManager(num_blocks=10, block_size=4)
    first, second = make_sequence(11), make_sequence(10)
    compute(kv, first, 11)
    compute(kv, second, 10)
    assert kv.num_used_blocks == 4
    assert kv.num_used_slots([first, second]) == 8 + 3 + 2


def test_two_equal_prompts_computed_side_by_side_leave_one_in_the_cache() -> None:
    kv = KVCacheManager(num_blocks=10, block_size=4)
    first, second = make_sequence(5), make_sequence(5)
    for sequence in (first, second):
        kv.start(sequence, kv.match(sequence))
        assert kv.allocate(sequence, 5)
    for sequence in (first, second):
        kv.advance(sequence, 5)
    assert kv.match(make_sequence(5)) == [0]
    kv.free(second)
    assert kv.pool.eviction_order()[:2] == [2, 3]
    kv.check_integrity([first])


def test_integrity_notices_a_lost_block() -> None:
    kv = KVCacheManager(num_blocks=4, block_size=4)
    sequence = make_sequence(9)
    compute(kv, sequence, 9)
    with pytest.raises(IntegrityError, match="block 0 has ref_count 1 and 0 holders"):
        kv.check_integrity([])
    sequence.block_table.pop()
    with pytest.raises(IntegrityError, match="block 2"):
        kv.check_integrity([sequence])


def test_integrity_notices_a_shared_block_that_may_still_be_written() -> None:
    kv = KVCacheManager(num_blocks=4, block_size=4, enable_prefix_caching=False)
    first, second = make_sequence(6), make_sequence(6)
    compute(kv, first, 6)
    kv.start(second, [])
    second.block_table.extend(first.block_table)
    for block_id in first.block_table:
        kv.pool.hold(kv.pool.blocks[block_id])
    with pytest.raises(IntegrityError, match="may still write block 1, which is shared"):
        kv.check_integrity([first, second])
