"""Recalls: device blocks that are held until what is brought back lies in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

from trierarch.python_backend.kv.block import Block
from trierarch.python_backend.kv.block_pool import BlockPool
from trierarch.python_backend.kv.copies import Recalled
from trierarch.python_backend.kv.integrity import require
from trierarch.python_backend.kv.offload import Offload
from trierarch.python_backend.kv.prefix_cache import PrefixCache


@dataclass(frozen=True, slots=True)
class _Held:
    sequence_id: int
    """Who waits."""
    blocks: tuple[Block, ...]
    """In token order: those that are there already, and those that are being filled."""
    coming: frozenset[bytes]


class Recalls:
    """Brings blocks back into the prefix cache, where whoever waits for them then finds them as it finds any other.

    A recall holds the blocks that its sequence would start from, and those that are filled. They belong to no sequence, so one
    that is aborted meanwhile leaves nothing behind. Once the copies are done they are free and cached, as the most recently
    used ones.
    """

    def __init__(self, offload: Offload, pool: BlockPool, cache: PrefixCache, take: Callable[[], Block]) -> None:
        """`take`: a free block for new content, now held once."""
        self._offload = offload
        self._pool = pool
        self._cache = cache
        self._take = take
        self._under_way: dict[int, _Held] = {}  # number of the recall -> what it holds
        self._coming: set[bytes] = set()

    def is_awaited(self, sequence_id: int) -> bool:
        """Whether blocks come back for a sequence."""
        return any(held.sequence_id == sequence_id for held in self._under_way.values())

    def begin(self, sequence_id: int, prefix: Iterable[int], keys: Ordered[bytes]) -> bool:
        """See to it that blocks come back for a sequence; whether it should wait for any.

        prefix: ids of computed blocks that it can start from. keys: of all that it could use beyond them, for which there
        must be as many free blocks.
        """
        run = self._run(keys)
        if not run:
            return False
        if not self._coming.isdisjoint(run):
            return True  # Another sequence has asked for them.
        before = [self._pool.blocks[block_id] for block_id in prefix]
        here = {key: block for key in run if (block := self._cache.find(key)) is not None}
        for block in (*before, *here.values()):  # Before any is taken, or it might be one of these.
            self._pool.hold(block)
        missing = [key for key in run if key not in here]
        recall = self._offload.recall(missing, lambda: self._take().block_id)
        self._coming.update(missing)
        taken = {arrival.key: self._pool.blocks[arrival.block_id] for arrival in recall.arrivals}
        blocks = (*before, *((here | taken)[key] for key in run))
        self._under_way[recall.number] = _Held(sequence_id, blocks, frozenset(missing))
        return True

    def finish(self, done: Recalled) -> None:
        """What has come is found from now on; all blocks are released, the end of the prefix to be evicted first."""
        held = self._under_way.pop(done.number)
        self._coming -= held.coming
        for arrival in self._offload.recalled(done):
            self._cache.insert(arrival.key, self._pool.blocks[arrival.block_id])
        for block in reversed(held.blocks):
            self._pool.release(block)

    def tables(self) -> list[list[int]]:
        """Ids of the blocks that each holds."""
        return [[block.block_id for block in held.blocks] for held in self._under_way.values()]

    def check_integrity(self) -> None:
        """Raise IntegrityError unless what is being filled is found by nobody, and the tiers agree."""
        coming = [key for held in self._under_way.values() for key in held.coming]
        require(len(coming) == len(set(coming)) and set(coming) == self._coming, "a block comes back twice, or is lost")
        self._offload.check_integrity(self._coming)

    def _run(self, keys: Ordered[bytes]) -> list[bytes]:
        """The first of `keys` that are on the device or can be brought back, up to the last that has to be."""
        tiers = self._offload.tiers(keys)
        num_useful = 0
        for index, (key, tier) in enumerate(zip(keys, tiers, strict=True)):
            if self._cache.find(key) is not None:
                continue
            if tier is None and key not in self._coming:
                break
            num_useful = index + 1
        return list(keys[:num_useful])
