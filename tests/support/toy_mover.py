"""Copies between tiers whose contents are what a CheckingRunner remembers, made when a test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random

from support.checking_runner import CheckingRunner
from trierarch.python_backend.executors.offload.carrier import News
from trierarch.python_backend.executors.offload.mover import Mover
from trierarch.python_backend.kv.copies import Arrival, Copies, Recall, Recalled, Saved, Saving, Tier
from trierarch.python_backend.kv.disk_tier import DiskTier
from trierarch.python_backend.kv.host_tier import HostTier
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.kv.offload import Offload

Content = dict[int, tuple[str, str, tuple[int, ...]]]
"""Offset in a block -> what a CheckingRunner has there."""


class AlwaysPays:
    """Implements Payoff."""

    def pays(self, tier: Tier) -> bool:
        return True

    def is_slow(self, tier: Tier) -> bool:
        return False

    def observe_copies(self, tier: Tier, num_blocks: int, seconds: float) -> None:
        pass

    def observe_step(self, num_tokens: int, seconds: float) -> None:
        pass


def make_offload(num_slots: int, max_files: int) -> Offload | None:
    """Tiers of so many blocks of one byte; None where the host has none."""
    if not num_slots:
        return None
    return Offload(HostTier(num_slots), AlwaysPays(), 1, DiskTier(max_files) if max_files else None)


class ToyCarrier:
    """Implements Carrier: each line of copies in its order, and each copy at the last moment, when `finish_one` says so."""

    kept: Sequence[bytes] = ()
    pinned_bytes = 0
    has_leftovers = False

    def __init__(self, runner: CheckingRunner) -> None:
        self.runner = runner
        self.host: dict[int, Content] = {}
        self.disk: dict[bytes, Content] = {}
        self.recalls: deque[Recall] = deque()
        self.savings: deque[Saving] = deque()

    @property
    def is_recalling(self) -> bool:
        """Whether blocks are on their way back."""
        return bool(self.recalls)

    def start(self, on_news: Callable[[News], None]) -> None:
        self.on_news = on_news

    def begin(self, copies: Copies) -> None:
        for one in copies.leaving:
            self.host[one.slot] = self._content(one.block_id)
        self.recalls += copies.recalls
        self.savings += copies.savings

    def keep(self, keys: Sequence[bytes]) -> None:
        pass

    def close(self) -> None:
        self.finish()

    def finish_one(self, random: Random | None = None) -> bool:
        """Make the next copy of a line, which fails at times if there is a `random`; whether there was any."""
        lines = [line for line in (self.recalls, self.savings) if line]
        if not lines:
            return False
        if (lines[0] if random is None else random.choice(lines)) is self.recalls:
            recall = self.recalls.popleft()
            lost = frozenset(a.key for a in recall.arrivals if not self._bring(a, random))
            self.on_news(Recalled(recall.number, lost))
        else:
            saving = self.savings.popleft()
            self.on_news(Saved(saving.key, self._save(saving, random)))
        return True

    def finish(self) -> None:
        """Make all copies."""
        while self.finish_one():
            pass

    def _bring(self, arrival: Arrival, random: Random | None) -> bool:
        content = self.disk[arrival.key] if arrival.slot is None else self.host[arrival.slot]
        if _fails(random):
            if arrival.slot is None:
                del self.disk[arrival.key]
            self._fill(arrival.block_id, {offset: ("", "garbage", ()) for offset in content})
            return False
        self._fill(arrival.block_id, content)
        return True

    def _save(self, saving: Saving, random: Random | None) -> bool:
        for key in saving.deleted:
            del self.disk[key]
        if _fails(random):
            return False
        assert saving.key not in self.disk, "it is there already"
        self.disk[saving.key] = self.host[saving.slot]
        return True

    def _content(self, block_id: int) -> Content:
        places = ((offset, (block_id, offset)) for offset in range(self.runner.block_size))
        return {offset: self.runner.slots[place] for offset, place in places}

    def _fill(self, block_id: int, content: Content) -> None:
        for offset, one in content.items():
            self.runner.slots[block_id, offset] = one


class ToyMover(ToyCarrier):
    """Copies that the books hear of as they are made."""

    def __init__(self, kv: KVCacheManager, runner: CheckingRunner) -> None:
        super().__init__(runner)
        self.mover = Mover(kv, self)
        self.mover.listen(self.mover.hear)

    def make_copies(self) -> None:
        """What the loop does before a step."""
        self.begin(self.mover.take())


def _fails(random: Random | None) -> bool:
    return random is not None and random.random() < 0.2
