"""The invariants of KV bookkeeping, checked as a whole: cheap enough to run whenever the scheduler is idle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Ordered

from trierarch.python_backend.kv.block_pool import BlockPool
from trierarch.python_backend.kv.prefix_cache import PrefixCache
from trierarch.python_backend.sequence import Sequence


class IntegrityError(RuntimeError):
    """Bookkeeping contradicts itself: a bug of ours, after which no answer can be trusted."""


def require(holds: bool, message: str) -> None:
    """Raise IntegrityError with `message` unless `holds`."""
    if not holds:
        raise IntegrityError(message)


def check_blocks(
    pool: BlockPool,
    cache: PrefixCache | None,
    block_size: int,
    sequences: list[Sequence],
    recalled: Ordered[Ordered[int]] = (),
) -> None:
    """Raise IntegrityError unless pool, cache and the block tables agree: of `sequences`, all that hold blocks, and `recalled`.

    recalled: ids of the blocks that each recall holds.
    """
    tables = (*(sequence.block_table for sequence in sequences), *recalled)
    _check_pool(pool, Counter(block_id for table in tables for block_id in table))
    keyed = [block for block in pool.blocks if block.key is not None]
    require(len(keyed) == (0 if cache is None else len(cache)), "as many blocks must be keyed as the cache finds")
    for block in keyed:
        require(cache is not None and cache.holds(block), f"block {block.block_id} is keyed but not in the cache")
    for sequence in sequences:
        _check_table(pool, block_size, sequence)


def _check_pool(pool: BlockPool, holders: Counter[int]) -> None:
    free = pool.eviction_order()
    require(len(free) == len(set(free)), "a block is free twice")
    for block in pool.blocks:
        require(
            block.ref_count == holders[block.block_id],
            f"block {block.block_id} has ref_count {block.ref_count} and {holders[block.block_id]} holders",
        )
    require(
        set(free) == {block.block_id for block in pool.blocks if block.ref_count == 0},
        "a block is lost, or both used and free",
    )


def _check_table(pool: BlockPool, block_size: int, sequence: Sequence) -> None:
    name = f"sequence {sequence.sequence_id}"
    table = sequence.block_table
    require(len(table) == len(set(table)), f"{name} holds a block twice")
    require(len(table) * block_size >= sequence.num_computed_tokens, f"{name} has computed tokens without a block")
    num_full = sequence.num_computed_tokens // block_size
    for index, block_id in enumerate(table):
        block = pool.blocks[block_id]
        if block.ref_count > 1 or block.key is not None:
            require(index < num_full, f"{name} may still write block {block_id}, which is shared or cached")
        if block.key is not None:
            require(block.key == sequence.block_keys[index], f"{name} holds block {block_id} of another prefix")
