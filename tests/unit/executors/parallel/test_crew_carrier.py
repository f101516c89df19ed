"""Shares of blocks that several ranks copy, each failing by itself: a block that comes back is whole, or it does not come back."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from support.scheduling import make_request
from support.toy_mover import AlwaysPays
from trierarch.python_backend.executors.offload.array_copier import ArrayCopier
from trierarch.python_backend.executors.offload.block_files import SUFFIX
from trierarch.python_backend.executors.offload.carrier import LocalCarrier, News
from trierarch.python_backend.executors.offload.mover import Mover
from trierarch.python_backend.executors.offload.share import Share
from trierarch.python_backend.executors.parallel.crew import Crew
from trierarch.python_backend.executors.parallel.crew_carrier import CrewCarrier, Recalling
from trierarch.python_backend.executors.parallel.messages import (
    CloseTiers,
    Command,
    Keep,
    Move,
    OpenTiers,
    Reply,
    TiersClosed,
    TiersOpened,
)
from trierarch.python_backend.executors.runner import RunnerLost
from trierarch.python_backend.kv.copies import Arrival, Copies, Leaving, Recall, Recalled, Saved, Saving, Tier
from trierarch.python_backend.kv.disk_tier import DiskTier
from trierarch.python_backend.kv.host_tier import HostTier
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.kv.offload import Offload
from trierarch.python_backend.sequence import Sequence as Tokens

NUM_RANKS = 3
NUM_BLOCKS = 6
BLOCK_SIZE = 2
PROMPTS = [tuple(range(10 * number, 10 * number + 9)) for number in range(6)]
"""Four full blocks each that may be found again."""


class NoProcesses(Crew):
    """Ranks 1 and on as carriers of this process, told at once."""

    def __init__(self, carriers: Sequence[LocalCarrier]) -> None:
        self.carriers = carriers
        self.waited_for: dict[str, int] = {}
        self.is_lost = False
        self.on_loss: Callable[[str], None] = lambda _: None

    @property
    def num_ranks(self) -> int:
        return 1 + len(self.carriers)

    def listen(self, on_loss: Callable[[str], None]) -> None:
        self.on_loss = on_loss

    def listen_to_copies(self, on_copy: Callable[[int, News], None]) -> None:
        for index, carrier in enumerate(self.carriers, start=1):
            carrier.start(lambda news, rank=index: on_copy(rank, news))  # type: ignore[misc]

    def wait_for(self, what: str) -> None:
        self.waited_for[what] = 0

    def has_come(self, what: str) -> None:
        self.waited_for.pop(what, None)

    def tell(self, command: Command) -> None:
        if self.is_lost:
            raise RunnerLost("rank 1 is gone")
        for carrier in self.carriers:
            if isinstance(command, Move):
                carrier.delete(command.deleted)
                carrier.begin(command.copies)
            elif isinstance(command, Keep):
                carrier.keep(command.keys)
            elif isinstance(command, CloseTiers):
                carrier.close()

    def answers(self, kind: type[Any], timeout: float = 0.0) -> list[Any]:
        replies: list[Reply] = [
            TiersOpened(tuple(carrier.kept), 0) if kind is TiersOpened else TiersClosed() for carrier in self.carriers
        ]
        return replies

    def lose(self) -> None:
        """As when a process ends."""
        self.is_lost = True
        self.on_loss("rank 1 is gone")


class FlakyCopier(ArrayCopier):
    """Fails now and then."""

    def __init__(self, array: np.ndarray[Any, Any], num_slots: int, random: Random) -> None:
        super().__init__([array], num_slots, "cpu")
        self._random = random

    def _may_fail(self) -> None:
        if self._random.random() < 0.05:
            raise RuntimeError("on purpose")

    def leave(self, leaving: Sequence[Leaving]) -> None:
        self._may_fail()
        super().leave(leaving)

    def bring(self, arrivals: Sequence[Arrival]) -> None:
        self._may_fail()
        super().bring(arrivals)

    def fill(self, block_id: int, content: bytearray) -> None:
        self._may_fail()
        super().fill(block_id, content)

    def pieces(self, slot: int) -> list[memoryview]:
        self._may_fail()
        return super().pieces(slot)


class Cache:
    """A cache whose blocks have a share on each rank, written by hand: a share of a block says of which key and rank it is."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = Random(seed)
        self.directory = directory
        self.arrays = [np.zeros((1, 2, NUM_BLOCKS, 3)) for _ in range(NUM_RANKS)]
        own, *others = (
            Share(3, directory, f"rank {rank}", f"lock{rank}").open(FlakyCopier(array, 3, Random(seed + rank)))
            for rank, array in enumerate(self.arrays)
        )
        self.crew = NoProcesses(others)
        self.carrier = CrewCarrier(self.crew, own, OpenTiers(Share(3, directory, "")))
        self.carrier.keep(self.carrier.kept)
        disk = DiskTier(8, self.carrier.kept)
        self.kv = KVCacheManager(NUM_BLOCKS, BLOCK_SIZE, offload=Offload(HostTier(3), AlwaysPays(), 1, disk))
        self.mover = Mover(self.kv, self.carrier)
        self.news = threading.Event()
        self.mover.listen(self.news.set)

    def ask(self, prompt: tuple[int, ...]) -> int:
        """Compute a prompt; how many blocks were found."""
        sequence = Tokens(0, make_request("0", prompt), 0, list(prompt))
        if self.kv.recall(sequence, self.kv.match(sequence)):
            self.mover.begin(self.mover.take())
            self.hear(lambda: not self.kv.is_recalling(sequence))
        prefix = self.kv.match(sequence)
        for key, block_id in zip(sequence.block_keys, prefix, strict=False):
            for rank, array in enumerate(self.arrays):
                assert (array[:, :, block_id] == share_of(key, rank)).all()
        self.kv.start(sequence, prefix)
        assert self.kv.allocate(sequence, len(prompt))
        self.mover.begin(self.mover.take())
        for block_id in sequence.block_table[len(prefix) :]:
            for array in self.arrays:
                array[:, :, block_id] = 0
        self.kv.advance(sequence, len(prompt))
        for key, block_id in list(zip(sequence.block_keys, sequence.block_table, strict=False))[len(prefix) :]:
            for rank, array in enumerate(self.arrays):
                array[:, :, block_id] = share_of(key, rank)
        self.kv.free(sequence)
        self.kv.check_integrity([])
        return len(prefix)

    def hear(self, is_done: Callable[[], bool]) -> None:
        """Tell the books what there is to tell, until all is told that is waited for."""
        while not is_done():
            assert self.news.wait(60)
            self.news.clear()
            self.mover.hear()

    def settle(self) -> None:
        """Wait for what is being written."""
        offload = self.kv.offload
        assert offload is not None
        self.mover.begin(self.mover.take())
        self.hear(lambda: not offload._being_saved)

    def close(self) -> None:
        if self.mover.has_copies:  # what only some have is deleted
            self.mover.begin(self.mover.take())
        assert not self.mover.has_copies
        self.mover.close()
        self.kv.check_integrity([])


def files_of(directory: Path) -> list[set[str]]:
    """Keys that each rank has files of."""
    found: dict[str, set[str]] = {}
    for path in directory.glob(f"*{SUFFIX}"):
        share, _, key = path.stem.partition("-")
        found.setdefault(share, set()).add(key)
    return list(found.values())


def share_of(key: bytes, rank: int) -> int:
    return int.from_bytes(key[:6], "little") + rank


def test_what_one_rank_fails_at_is_lost_for_all_and_nothing_else_is(tmp_path: Path) -> None:
    """Six sieges; how many copies fail in each depends on which thread is first."""
    counts = np.zeros(4, int)
    for seed in range(6):
        directory = tmp_path / str(seed)
        counts += besiege(Cache(directory, seed))
        first, *others = files_of(directory)
        assert [len(others), *others] == [NUM_RANKS - 1] + [first] * (NUM_RANKS - 1)
    assert counts.min() > 0, "hits and failures of either tier"

    next(directory.glob(f"*{min(first)}{SUFFIX}")).unlink()
    again = Cache(directory, seed)
    left = first - {min(first)}
    assert {key.hex() for key in again.carrier.kept} == left
    again.close()
    assert files_of(directory) == [left] * NUM_RANKS


def besiege(cache: Cache) -> list[int]:
    """Ask for more than there is room for; hits and failures of both tiers."""
    for _ in range(60):
        cache.ask(cache.random.choice(PROMPTS))
        if cache.random.random() < 0.5:
            cache.settle()
    cache.settle()
    assert cache.kv.offload is not None
    stats = cache.kv.offload.stats()
    assert stats.disk is not None
    assert not cache.crew.waited_for
    cache.close()
    assert {len(files) for files in files_of(cache.directory)} == {stats.disk.num_blocks}
    return [stats.host.num_hits, stats.host.num_failures, stats.disk.num_hits, stats.disk.num_failures]


def test_all_that_is_under_way_fails_when_a_rank_is_lost_and_whatever_is_asked_for_then(tmp_path: Path) -> None:
    silent = LocalCarrier(ArrayCopier([np.zeros((1, 2, 1, 1))], 1, "cpu"))
    silent.begin = lambda copies: None  # type: ignore[method-assign]
    own = Share(1, tmp_path, "").open(ArrayCopier([np.zeros((1, 2, 1, 1))], 1, "cpu"))
    crew = NoProcesses([silent])
    carrier = CrewCarrier(crew, own, OpenTiers(Share(1, None, "")))
    news: deque[News] = deque()
    carrier.start(news.append)
    carrier.begin(Copies(recalls=(Recall(7, (Arrival(b"a", 0, 0),)),), savings=(Saving(b"b", 0),)))
    assert crew.waited_for, "it is noticed if nobody answers"
    assert not news
    crew.lose()
    lost = [Recalled(7, frozenset({b"a"})), Saved(b"b", False)]
    assert list(news) == lost
    assert not crew.waited_for
    carrier.begin(Copies(recalls=(Recall(8, (Arrival(b"a", 0, 0),)),)))
    assert list(news)[2:] == [Recalled(8, frozenset({b"a"}))]
    carrier.close()
    carrier.close()
    assert len(news) == 3, "what comes late is heard by nobody"


def test_a_recall_takes_as_long_as_it_takes_the_slowest() -> None:
    recalling = Recalling(Recall(1, ()))
    for rank, seconds in enumerate([{Tier.HOST: 2.0}, {Tier.HOST: 1.0, Tier.DISK: 3.0}]):
        recalling.ended[rank] = Recalled(1, frozenset(), seconds)
    assert recalling.outcome.seconds == {Tier.HOST: 2.0, Tier.DISK: 3.0}
