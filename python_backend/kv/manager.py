"""KVCacheManager: what the scheduler calls to place the tokens of sequences in blocks.

The token axis of a sequence, block_size 4, with a step of 3 tokens and room for 2 drafts planned:

    tokens       0 1 2 3   4 5 6 7   8 9 . .
    computed     <------------->
    this step                    <----->
    lookahead                            <->
    block_table  [ 12 ]    [ 7 ]     [ 30 ]
    may be shared  yes       no         no        only full blocks whose KV was computed before
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Ordered

from trierarch.python_backend.kv.block import Block
from trierarch.python_backend.kv.block_pool import BlockPool
from trierarch.python_backend.kv.copies import Recalled
from trierarch.python_backend.kv.integrity import check_blocks
from trierarch.python_backend.kv.offload import Offload
from trierarch.python_backend.kv.prefix_cache import PrefixCache, chain_key, root_key
from trierarch.python_backend.kv.recalls import Recalls
from trierarch.python_backend.kv.stay import stay_of
from trierarch.python_backend.sequence import Sequence


class KVCacheManager:
    """Owns the blocks. The only writer of a sequence's `block_table`, `block_keys` and `num_computed_tokens`.

    A sequence goes through `match`, `recall` (until that has nothing to wait for), `start`, then per step `allocate` and `advance`, and ends with `free`, after which
    it may start again. What was full and computed stays findable until its block is needed for something else.
    """

    def __init__(
        self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True, offload: Offload | None = None
    ) -> None:
        """Manage `num_blocks` blocks of `block_size` tokens, all free.

        offload: where cached blocks go that are evicted, if they are cached at all; None forgets them.
        """
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}: a block holds at least 1 token")
        self.pool = BlockPool(num_blocks)
        self.cache = PrefixCache() if enable_prefix_caching else None
        self.block_size = block_size
        self.offload = None if self.cache is None else offload
        self._recalls = (
            None
            if self.cache is None or self.offload is None
            else Recalls(self.offload, self.pool, self.cache, self._take)
        )
        self.num_reused_blocks = 0
        """Blocks that sequences found already computed when they first started."""

    @property
    def num_blocks(self) -> int:
        """Free and used."""
        return self.pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Held by nobody, cached ones included."""
        return self.pool.num_free_blocks

    @property
    def num_used_blocks(self) -> int:
        """Held by sequences, or being filled for one that waits."""
        return self.pool.num_blocks - self.pool.num_free_blocks

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def num_used_slots(self, sequences: Iterable[Sequence]) -> int:
        """KV slots of used blocks that hold a computed token, given all sequences that hold blocks."""
        num_computed = num_held = 0
        for sequence in sequences:
            num_computed += sequence.num_computed_tokens
            num_held += len(sequence.block_table)
        for table in self._recalled_tables():
            num_computed += len(table) * self.block_size
            num_held += len(table)
        # Only full blocks are shared, so each time a block is held beyond the first counts a whole block twice.
        return num_computed - (num_held - self.num_used_blocks) * self.block_size

    def match(self, sequence: Sequence, siblings: Iterable[Sequence] = ()) -> list[int]:
        """Ids of the longest run of computed full blocks that `sequence` can start from. Changes nothing.

        They come from the prefix cache, or from one of `siblings` (same prompt, running), which needs no cache. The
        last known token is always left to compute, since its logits are wanted.
        """
        prefix: list[int] = []
        if self.cache is not None:
            prefix = self.cache.match(self._keys(sequence, (sequence.num_tokens - 1) // self.block_size))
        most = (sequence.num_prompt_tokens - 1) // self.block_size
        for sibling in siblings:
            num_shared = min(most, sibling.num_computed_tokens // self.block_size)
            if num_shared > len(prefix):
                prefix = sibling.block_table[:num_shared]
        return prefix

    def can_start(self, prefix: list[int], num_tokens: int, num_reserved_blocks: int) -> bool:
        """Whether `num_tokens` tokens after and with `prefix` fit, leaving `num_reserved_blocks` free."""
        num_revived = sum(self.pool.blocks[block_id].ref_count == 0 for block_id in prefix)
        num_new = self.num_blocks_for(num_tokens) - len(prefix)
        return num_revived + num_new + num_reserved_blocks <= self.num_free_blocks

    def is_recalling(self, sequence: Sequence) -> bool:
        """Whether a sequence waits for blocks that it asked for; those are set aside for it, so that it need not fit."""
        return self._recalls is not None and self._recalls.is_awaited(sequence.sequence_id)

    def recall(self, sequence: Sequence, prefix: list[int]) -> bool:
        """See to it that what `sequence` could start from beyond `prefix` comes back; whether it should wait for that.

        `prefix` is what `match` found, and `can_start` agreed. What has come back `match` finds, once `recalled` was told.
        """
        if self._recalls is None:
            return False
        keys = self._keys(sequence, (sequence.num_tokens - 1) // self.block_size)
        return self._recalls.begin(sequence.sequence_id, prefix, keys[len(prefix) :])

    def recalled(self, done: Recalled) -> None:
        """Blocks that were asked for have come, or will not."""
        assert self._recalls is not None
        self._recalls.finish(done)

    def start(self, sequence: Sequence, prefix: list[int]) -> None:
        """Give a sequence that holds no blocks the computed blocks that `match` found for it."""
        assert not sequence.block_table
        for block_id in prefix:
            self.pool.hold(self.pool.blocks[block_id])
        sequence.block_table.extend(prefix)
        for index in range(len(prefix)):
            self._retain(sequence, index)
        sequence.num_computed_tokens = len(prefix) * self.block_size
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            sequence.num_reused_blocks = len(prefix)
            self.num_reused_blocks += len(prefix)

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make the block table cover `num_tokens` tokens. All or nothing: False changes nothing."""
        num_new = self.num_blocks_for(num_tokens) - len(sequence.block_table)
        if num_new <= 0:
            return True
        if num_new > self.num_free_blocks:
            return False
        for _ in range(num_new):
            sequence.block_table.append(self._take().block_id)
        sequence.num_new_blocks += num_new
        return True

    def room_for(self, sequence: Sequence) -> int:
        """Tokens that its blocks and all free ones could hold."""
        return (len(sequence.block_table) + self.num_free_blocks) * self.block_size

    def advance(self, sequence: Sequence, num_computed_tokens: int, num_held_tokens: int = 0) -> None:
        """Take note that the first `num_computed_tokens` known tokens are computed; blocks now full become findable.

        Blocks beyond them, taken for drafts that were not accepted, are given back, but for those of the first
        `num_held_tokens`, which a step in flight computes.
        """
        first_new, num_full = sequence.num_computed_tokens // self.block_size, num_computed_tokens // self.block_size
        sequence.num_computed_tokens = num_computed_tokens
        if self.cache is not None and num_full > first_new:
            keys = self._keys(sequence, num_full)
            for index in range(first_new, num_full):
                self.cache.insert(keys[index], self.pool.blocks[sequence.block_table[index]])
                self._retain(sequence, index)
        self._release_from(sequence, self.num_blocks_for(max(num_computed_tokens, num_held_tokens)))

    def free(self, sequence: Sequence) -> None:
        """Take all blocks back, as when it ends or is preempted; it has computed nothing then."""
        self._release_from(sequence, 0)
        sequence.num_computed_tokens = 0

    def cached_blocks(self) -> list[tuple[bytes, int]]:
        """(key, block id) of what the cache finds and no sequence holds, the next to be evicted first."""
        blocks = (self.pool.blocks[block_id] for block_id in self.pool.eviction_order())
        return [(block.key, block.block_id) for block in blocks if block.key is not None]

    def restore(self, keys: Ordered[bytes]) -> list[int]:
        """Ids of free blocks that are found under `keys` from now on, the first to be evicted first.

        The caller fills them before anything is scheduled. There must be as many free blocks; without a cache there are none.
        """
        if self.cache is None:
            return []
        blocks = [self.pool.take() for _ in keys]
        for key, block in zip(keys, blocks, strict=True):
            assert block.key is None, "only a new pool is restored"
            self.cache.insert(key, block)
            self.pool.release(block)
        return [block.block_id for block in blocks]

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Raise IntegrityError unless blocks, cache and all `sequences` that hold blocks agree."""
        check_blocks(self.pool, self.cache, self.block_size, list(sequences), self._recalled_tables())
        if self._recalls is not None:
            self._recalls.check_integrity()

    def _take(self) -> Block:
        """A free block for new content, held once; what was cached in it goes where the offload keeps it."""
        block = self.pool.take()
        if block.key is not None and self.cache is not None:
            if self.offload is not None:
                self.offload.leave(block.key, block.block_id)
            self.cache.evict(block)
        return block

    def _retain(self, sequence: Sequence, index: int) -> None:
        """Let a full block of a sequence stay as its request asks for, if it does: whoever used it last has the last word."""
        start = index * self.block_size
        stay = stay_of(sequence.request, start, start + self.block_size)
        if stay is not None:
            self.pool.blocks[sequence.block_table[index]].stay = stay

    def _recalled_tables(self) -> list[list[int]]:
        return [] if self._recalls is None else self._recalls.tables()

    def _release_from(self, sequence: Sequence, num_kept: int) -> None:
        table = sequence.block_table
        while len(table) > num_kept:
            self.pool.release(self.pool.blocks[table.pop()])

    def _keys(self, sequence: Sequence, num_blocks: int) -> list[bytes]:
        """Chain keys of the first `num_blocks` blocks, all of whose tokens are known. Known tokens never change."""
        keys = sequence.block_keys
        if len(keys) < num_blocks:
            request = sequence.request
            parent = keys[-1] if keys else root_key(request.adapter_digest, request.cache_salt)
            for index in range(len(keys), num_blocks):
                start = index * self.block_size
                parent = chain_key(parent, sequence.token_ids[start : start + self.block_size])
                keys.append(parent)
        return keys[:num_blocks]
