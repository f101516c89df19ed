"""Offload: what becomes of cached blocks that the device has no room for, and which of them come back.

A block that leaves the device goes to a slot of host memory. The slots that are next to give way are written to disk ahead
of need, where there is a disk tier, so that nobody waits for it: what was not written in time is lost, and computed again.
What comes back stays where it was, so that it need not be copied when it leaves again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from typing import Final

from trierarch.python_backend.kv.copies import Arrival, Copies, Leaving, Recall, Recalled, Saved, Saving, Tier
from trierarch.python_backend.kv.disk_tier import DiskTier
from trierarch.python_backend.kv.host_tier import HostTier
from trierarch.python_backend.kv.integrity import require
from trierarch.python_backend.kv.offload_stats import OffloadStats, TierStats
from trierarch.python_backend.kv.payoff import Payoff

_WRITTEN_AHEAD: Final = 8
"""One slot in so many is kept free, or written to disk ahead of need."""


class Offload:
    """Keeps the books of host memory and disk, and asks for copies; others make them (`kv/copies.py`) and tell it."""

    def __init__(self, host: HostTier, payoff: Payoff, block_bytes: int, disk: DiskTier | None = None) -> None:
        """block_bytes: that a block takes in either tier."""
        self.payoff = payoff
        self._host = host
        self._disk = disk
        self._block_bytes = block_bytes
        self._num_ahead = max(1, host.num_slots // _WRITTEN_AHEAD)
        self._leaving: list[Leaving] = []
        self._recalls: list[Recall] = []
        self._savings: list[Saving] = []
        self._under_way: dict[int, Recall] = {}  # number -> recall
        self._being_saved: set[bytes] = set()
        self._hits: Counter[Tier] = Counter()
        self._stored: Counter[Tier] = Counter()
        self._failures: Counter[Tier] = Counter()
        self._num_recalls = 0
        self._num_dropped = 0

    @property
    def has_copies(self) -> bool:
        """Whether `take_copies` has anything."""
        return bool(self._leaving or self._recalls or self._savings)

    def take_copies(self) -> Copies:
        """What is to be copied before the next step begins, or beside it."""
        copies = Copies(tuple(self._leaving), tuple(self._recalls), tuple(self._savings))
        self._leaving, self._recalls, self._savings = [], [], []
        return copies

    def leave(self, key: bytes, block_id: int) -> None:
        """The device has a computed block no longer: what is in it now is kept in host memory, if that pays."""
        if self._payoff_is_bad:
            return
        if key in self._host:
            self._host.touch(key)
            return
        slot = self._host.add(key, is_saved=self._disk is not None and key in self._disk)
        if slot is None:
            self._num_dropped += 1
            return
        self._leaving.append(Leaving(block_id, slot))
        self._stored[Tier.HOST] += 1
        self._save_ahead()

    def tiers(self, keys: Ordered[bytes]) -> list[Tier | None]:
        """For each key where its block would come from; None is nowhere, and so is what is not worth it."""
        found: list[Tier | None] = [self._tier(key) for key in keys]
        bad = {tier for tier in Tier if tier in found and not self.payoff.pays(tier)}
        return [None if tier in bad else tier for tier in found]

    def recall(self, keys: Ordered[bytes], take: Callable[[], int]) -> Recall:
        """Bring back blocks that `tiers` found somewhere. `take`: the id of a block to be filled, for each.

        Taking one may let another block leave the device: what comes back must not make room for that.
        """
        self._num_recalls += 1
        slots = [self._pin(key) for key in keys]
        arrivals = tuple(Arrival(key, take(), slot) for key, slot in zip(keys, slots, strict=True))
        recall = Recall(self._num_recalls, arrivals)
        self._under_way[recall.number] = recall
        self._recalls.append(recall)
        return recall

    def recalled(self, done: Recalled) -> tuple[Arrival, ...]:
        """A recall is over: those of its arrivals that are in place. What is lost is not looked for again."""
        recall = self._under_way.pop(done.number)
        counts = Counter(arrival.tier for arrival in recall.arrivals)
        for arrival in recall.arrivals:
            if arrival.tier is Tier.HOST:
                self._host.unpin(arrival.key)
            elif self._disk is not None:
                self._disk.unpin(arrival.key)
        for tier, seconds in done.seconds.items():
            self.payoff.observe_copies(tier, counts[tier], seconds)
        for arrival in recall.arrivals:
            if arrival.key in done.lost:
                self._failures[arrival.tier] += 1
                self._forget(arrival)
            else:
                self._hits[arrival.tier] += 1
        return tuple(arrival for arrival in recall.arrivals if arrival.key not in done.lost)

    def saved(self, done: Saved) -> None:
        """A slot was written to disk, or could not be; then it is tried again when it has become the oldest once more."""
        assert self._disk is not None
        self._being_saved.discard(done.key)
        self._host.unpin(done.key)
        if done.is_done:
            self._disk.add(done.key)
            self._stored[Tier.DISK] += 1
        else:
            self._disk.give_up()
            self._failures[Tier.DISK] += 1
        self._host.set_saved(done.key, done.is_done)

    def stats(self) -> OffloadStats:
        """A snapshot."""
        host, disk = self._host, self._disk
        return OffloadStats(
            host=self._tier_stats(Tier.HOST, len(host), host.num_slots, host.num_evictions),
            disk=None if disk is None else self._tier_stats(Tier.DISK, len(disk), disk.max_blocks, disk.num_evictions),
            num_recalls=self._num_recalls,
            num_dropped=self._num_dropped,
        )

    def check_integrity(self, coming: set[bytes]) -> None:
        """Raise IntegrityError unless the tiers agree with the copies under way, and those bring `coming` back."""
        arrivals = [arrival for recall in self._under_way.values() for arrival in recall.arrivals]
        require({arrival.key for arrival in arrivals} == coming, "blocks come back that nobody waits for, or do not")
        pins = {tier: Counter(arrival.key for arrival in arrivals if arrival.tier is tier) for tier in Tier}
        pins[Tier.HOST].update(self._being_saved)
        self._host.check_integrity(pins[Tier.HOST], self._disk)
        if self._disk is not None:
            self._disk.check_integrity(len(self._being_saved), pins[Tier.DISK])

    @property
    def _payoff_is_bad(self) -> bool:
        return self.payoff.is_slow(Tier.HOST) and (self._disk is None or self.payoff.is_slow(Tier.DISK))

    def _tier(self, key: bytes) -> Tier | None:
        if key in self._host:
            return Tier.HOST
        return Tier.DISK if self._disk is not None and key in self._disk else None

    def _pin(self, key: bytes) -> int | None:
        """Keep a block where it is until its recall is over: its slot, or None where that is on disk."""
        if self._tier(key) is Tier.HOST:
            self._host.touch(key)
            return self._host.pin(key)
        assert self._disk is not None
        self._disk.touch(key)
        self._disk.pin(key)
        return None

    def _forget(self, arrival: Arrival) -> None:
        """Look no more for a block where it could not be read, unless it is in use there."""
        if arrival.tier is Tier.DISK:
            assert self._disk is not None
            self._disk.remove(arrival.key)
            self._host.set_saved(arrival.key, False)
        elif arrival.key not in self._being_saved:
            self._host.remove(arrival.key)

    def _save_ahead(self) -> None:
        disk = self._disk
        while disk is not None and self._host.num_replaceable + len(self._being_saved) < self._num_ahead:
            key = self._host.oldest_unsaved()
            gone = None if key is None else disk.reserve()
            if key is None or gone is None:
                return
            for evicted in gone:
                self._host.set_saved(evicted, False)
            self._being_saved.add(key)
            self._savings.append(Saving(key, self._host.pin(key), gone))

    def _tier_stats(self, tier: Tier, num_blocks: int, max_blocks: int, num_evictions: int) -> TierStats:
        return TierStats(
            num_blocks=num_blocks,
            num_bytes=num_blocks * self._block_bytes,
            max_blocks=max_blocks,
            num_hits=self._hits[tier],
            num_stored=self._stored[tier],
            num_evictions=num_evictions,
            num_failures=self._failures[tier],
        )
