"""BlockPool: all blocks, how often each is held, and the free ones in eviction order."""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Final

from trierarch.python_backend.kv.block import DEFAULT_STAY, Block

_EMPTY: Final = -1
"""Below every priority: what holds nothing is taken first."""


class BlockPool:
    """Gives out blocks and takes them back, each in O(1), but for those that stay for a time: O(log n).

    Eviction order: free blocks that hold nothing come first, then cached ones by priority, and of one priority the longest
    free first. A sequence's blocks are released last to first, so that the end of a prefix goes before its beginning
    (without which it could not be found). OrderedDicts, because a cached block is taken from the middle when a prefix is hit
    again.
    """

    def __init__(self, num_blocks: int, clock: Callable[[], float] = time.monotonic) -> None:
        """A pool of `num_blocks` free blocks with the ids 0 to num_blocks - 1. `clock` counts seconds."""
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}: a pool needs at least 1 block")
        self.blocks = tuple(Block(block_id) for block_id in range(num_blocks))
        self._clock = clock
        self._free: defaultdict[int, OrderedDict[int, Block]] = defaultdict(OrderedDict)  # by rank
        self._free[_EMPTY].update((block.block_id, block) for block in self.blocks)
        self._num_free = num_blocks
        self._leaving: list[tuple[float, int]] = []  # a heap of (when, block_id), some of which are held again

    @property
    def num_blocks(self) -> int:
        """Free and used."""
        return len(self.blocks)

    @property
    def num_free_blocks(self) -> int:
        """Held by nobody, cached ones included."""
        return self._num_free

    def take(self) -> Block:
        """The next block to evict, now held once. It may still be keyed: the caller makes the cache forget it.

        Raises:
            KeyError: no block is free; ask `num_free_blocks` first.
        """
        if not self._num_free:
            raise KeyError("no block is free")
        self._let_leave()
        rank = min(rank for rank, blocks in self._free.items() if blocks)
        _, block = self._free[rank].popitem(last=False)
        self._num_free -= 1
        block.ref_count = 1
        block.stay, block.leaves_at = DEFAULT_STAY, None
        return block

    def hold(self, block: Block) -> None:
        """Hold a block once more; a free one leaves the eviction order."""
        if block.ref_count == 0:
            del self._free[_rank(block)][block.block_id]
            self._num_free -= 1
            block.leaves_at = None
        block.ref_count += 1

    def release(self, block: Block) -> None:
        """Hold a block once less; with the last holder gone it is free."""
        block.ref_count -= 1
        if block.ref_count:
            return
        self._num_free += 1
        self._free[_rank(block)][block.block_id] = block
        if block.key is None:
            self._free[_EMPTY].move_to_end(block.block_id, last=False)
        elif block.stay.seconds is not None:
            block.leaves_at = self._clock() + block.stay.seconds
            self._note(block.leaves_at, block)

    def eviction_order(self) -> list[int]:
        """Ids of the free blocks, the next to be taken first."""
        return [block_id for rank in sorted(self._free) for block_id in self._free[rank]]

    def _note(self, leaves_at: float, block: Block) -> None:
        heapq.heappush(self._leaving, (leaves_at, block.block_id))
        if len(self._leaving) > 2 * self.num_blocks:  # Most are of blocks that were held again since.
            known = {(block.leaves_at, block.block_id) for block in self.blocks}
            self._leaving = sorted(set(self._leaving) & known)

    def _let_leave(self) -> None:
        """Those whose time is over are as any other from now on."""
        now = self._clock() if self._leaving else 0.0
        while self._leaving and self._leaving[0][0] <= now:
            leaves_at, block_id = heapq.heappop(self._leaving)
            block = self.blocks[block_id]
            if block.leaves_at == leaves_at:
                del self._free[_rank(block)][block_id]
                block.stay, block.leaves_at = DEFAULT_STAY, None
                self._free[_rank(block)][block_id] = block


def _rank(block: Block) -> int:
    return _EMPTY if block.key is None else block.stay.priority
