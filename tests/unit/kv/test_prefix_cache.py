from __future__ import annotations

from trierarch.python_backend.kv.block import Block
from trierarch.python_backend.kv.prefix_cache import KEY_BYTES, PrefixCache, chain_key, root_key


def chain(adapter: str, salt: str, *blocks: list[int]) -> list[bytes]:
    keys = [root_key(adapter, salt)]
    for tokens in blocks:
        keys.append(chain_key(keys[-1], tokens))
    return keys[1:]


def test_a_key_depends_on_all_tokens_before_the_block_and_in_it() -> None:
    keys = chain("", "", [1, 2], [3, 4])
    assert chain("", "", [1, 2], [3, 4]) == keys
    assert chain("", "", [1, 2], [3, 5])[0] == keys[0]
    assert chain("", "", [1, 2], [3, 5])[1] != keys[1]
    assert chain("", "", [0, 2], [3, 4])[1] != keys[1]
    assert {len(key) for key in keys} == {KEY_BYTES}


def test_adapter_and_salt_start_other_chains_and_cannot_be_shifted_into_each_other() -> None:
    roots = [root_key("", ""), root_key("a", ""), root_key("", "a"), root_key("ab", "c"), root_key("a", "bc")]
    assert len(set(roots)) == len(roots)


def test_the_longest_run_from_the_start_is_matched() -> None:
    cache = PrefixCache()
    keys = chain("", "", [1], [2], [3], [4])
    for block_id in (0, 1, 3):
        cache.insert(keys[block_id], Block(block_id))
    assert cache.match(keys) == [0, 1]
    assert cache.match(keys[2:]) == []


def test_of_blocks_with_equal_content_the_first_is_kept() -> None:
    cache = PrefixCache()
    (key,) = chain("", "", [1])
    first, second = Block(7), Block(8)
    cache.insert(key, first)
    cache.insert(key, second)
    assert cache.match([key]) == [7]
    assert (first.key, second.key) == (key, None)


def test_an_evicted_block_is_found_no_more_but_those_after_it_are_once_it_is_back() -> None:
    cache = PrefixCache()
    keys = chain("", "", [1], [2])
    blocks = [Block(0), Block(1)]
    for key, block in zip(keys, blocks, strict=True):
        cache.insert(key, block)
    cache.evict(blocks[0])
    assert blocks[0].key is None
    assert cache.match(keys) == []
    cache.insert(keys[0], Block(5))
    assert cache.match(keys) == [5, 1]


def test_what_came_and_went_is_counted() -> None:
    cache = PrefixCache()
    keys = chain("", "", [1], [2])
    blocks = [Block(block_id) for block_id in range(3)]
    for key, block in zip((*keys, keys[0]), blocks, strict=True):
        cache.insert(key, block)
    assert (cache.num_stored, cache.num_removed, len(cache)) == (2, 0, 2)
    cache.evict(blocks[1])
    cache.insert(keys[1], blocks[2])
    assert (cache.num_stored, cache.num_removed, len(cache)) == (3, 1, 2)
