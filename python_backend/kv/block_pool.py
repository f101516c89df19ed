"""BlockPool: all blocks, how often each is held, and the free ones in eviction order."""

from __future__ import annotations

from collections import OrderedDict

from trierarch.python_backend.kv.block import Block


class BlockPool:
    """Gives out blocks and takes them back, each in O(1).

    Eviction order: free blocks that hold nothing come first, then cached ones, the longest free first. A sequence's
    blocks are released last to first, so that the end of a prefix goes before its beginning (without which it could
    not be found). An OrderedDict, because a cached block is taken from the middle when a prefix is hit again.
    """

    def __init__(self, num_blocks: int) -> None:
        """A pool of `num_blocks` free blocks with the ids 0 to num_blocks - 1."""
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}: a pool needs at least 1 block")
        self.blocks = tuple(Block(block_id) for block_id in range(num_blocks))
        self._free = OrderedDict((block.block_id, block) for block in self.blocks)

    @property
    def num_blocks(self) -> int:
        """Free and used."""
        return len(self.blocks)

    @property
    def num_free_blocks(self) -> int:
        """Held by nobody, cached ones included."""
        return len(self._free)

    def take(self) -> Block:
        """The next block to evict, now held once. It may still be keyed: the caller makes the cache forget it.

        Raises:
            KeyError: no block is free; ask `num_free_blocks` first.
        """
        _, block = self._free.popitem(last=False)
        block.ref_count = 1
        return block

    def hold(self, block: Block) -> None:
        """Hold a block once more; a free one leaves the eviction order."""
        if block.ref_count == 0:
            del self._free[block.block_id]
        block.ref_count += 1

    def release(self, block: Block) -> None:
        """Hold a block once less; with the last holder gone it is free."""
        block.ref_count -= 1
        if block.ref_count == 0:
            self._free[block.block_id] = block
            if block.key is None:
                self._free.move_to_end(block.block_id, last=False)

    def eviction_order(self) -> list[int]:
        """Ids of the free blocks, the next to be taken first."""
        return list(self._free)
