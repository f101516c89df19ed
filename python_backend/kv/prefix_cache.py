"""PrefixCache: finds full blocks by the chained hash of everything before and in them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Ordered
from hashlib import blake2b

from trierarch.python_backend.kv.block import Block

KEY_BYTES = 16
"""A 128-bit hash is trusted without comparing tokens: two prefixes collide with odds of 2^-64 after 2^32 blocks."""


def root_key(adapter: str, cache_salt: str) -> bytes:
    """Key before the first block. Other adapter or other salt, other chain: nothing is ever shared between them."""
    name = adapter.encode()
    return blake2b(len(name).to_bytes(8, "little") + name + cache_salt.encode(), digest_size=KEY_BYTES).digest()


def chain_key(parent: bytes, token_ids: Ordered[int]) -> bytes:
    """Key of a full block of `token_ids` that follows the block of key `parent`."""
    return blake2b(parent + array("I", token_ids).tobytes(), digest_size=KEY_BYTES).digest()


class PrefixCache:
    """Chain key → block. A block is in here exactly as long as its `key` is set.

    Blocks of equal content may exist when equal prompts run side by side: the first one in is found, the others stay
    unkeyed and go first when freed.
    """

    def __init__(self) -> None:
        """An empty cache."""
        self._blocks: dict[bytes, Block] = {}
        self.num_stored = 0
        """Blocks that were inserted, since the start; so `num_removed` of those evicted."""
        self.num_removed = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def match(self, keys: Ordered[bytes]) -> list[int]:
        """Ids of the longest run of blocks, from the first key on, that are all here. Changes nothing."""
        run = []
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                break
            run.append(block.block_id)
        return run

    def find(self, key: bytes) -> Block | None:
        """The block of a key, if it is here."""
        return self._blocks.get(key)

    def insert(self, key: bytes, block: Block) -> None:
        """Make a full and computed block findable, unless one of equal content is already."""
        if key not in self._blocks:
            self._blocks[key] = block
            block.key = key
            self.num_stored += 1

    def evict(self, block: Block) -> None:
        """Forget a keyed block."""
        assert block.key is not None
        del self._blocks[block.key]
        block.key = None
        self.num_removed += 1

    def holds(self, block: Block) -> bool:
        """Whether the block is found under its key."""
        return block.key is not None and self._blocks.get(block.key) is block
