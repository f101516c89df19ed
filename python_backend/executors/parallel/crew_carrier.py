"""CrewCarrier: blocks of which each rank has a share. All copy at a time, and a block has moved once all have moved theirs.

The ranks are told in the line of the steps, so that what leaves is copied by each before it computes what writes over it. How
copies end each says for itself. Where one could not, the block is lost for all: never is one made up of two prefixes' shares.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from trierarch.builder.errors import ResourceError, TrierarchError
from trierarch.python_backend.executors.offload.carrier import LocalCarrier, News
from trierarch.python_backend.executors.parallel.crew import Crew
from trierarch.python_backend.executors.parallel.messages import (
    CloseTiers,
    Keep,
    Move,
    OpenTiers,
    TiersClosed,
    TiersOpened,
)
from trierarch.python_backend.executors.runner import RunnerLost
from trierarch.python_backend.kv.copies import Copies, Recall, Recalled, Saved, Tier

logger = logging.getLogger(__name__)

_CLOSE_SECONDS: Final = 60.0
"""For ranks to end the copies that they are at."""
_RECALLS: Final = "the return of cached blocks"


@dataclass(slots=True)
class Recalling:
    """A recall, until all ranks have said how theirs ended."""

    recall: Recall
    ended: dict[int, Recalled] = field(default_factory=dict)  # rank -> how it ended there

    @property
    def outcome(self) -> Recalled:
        """Lost is what one of them has lost; it took as long as the slowest."""
        lost = frozenset[bytes]().union(*(its.lost for its in self.ended.values()))
        seconds: dict[Tier, float] = {}
        for its in self.ended.values():
            seconds |= {tier: max(took, seconds.get(tier, 0.0)) for tier, took in its.seconds.items()}
        return Recalled(self.recall.number, lost, seconds)

    @property
    def failure(self) -> Recalled:
        """All is lost."""
        return Recalled(self.recall.number, frozenset(arrival.key for arrival in self.recall.arrivals))

    @property
    def orphans(self) -> list[bytes]:
        """Keys of files that some ranks may have, and nobody will look for."""
        lost = self.outcome.lost
        return [its.key for its in self.recall.arrivals if its.tier is Tier.DISK and its.key in lost]


@dataclass(slots=True)
class Writing:
    """A saving, likewise."""

    key: bytes
    ended: dict[int, Saved] = field(default_factory=dict)  # rank -> how it ended there

    @property
    def outcome(self) -> Saved:
        """Done is what all have done."""
        return Saved(self.key, all(its.is_done for its in self.ended.values()))

    @property
    def failure(self) -> Saved:
        """Not done."""
        return Saved(self.key, False)

    @property
    def orphans(self) -> list[bytes]:
        """As of a recall."""
        done = [its.is_done for its in self.ended.values()]
        return [self.key] if any(done) and not all(done) else []


class CrewCarrier:
    """Implements Carrier. Rank 0's share is copied by `own`, in this process."""

    def __init__(self, crew: Crew, own: LocalCarrier, order: OpenTiers) -> None:
        """order: to ranks 1 and on; `own` is closed where one cannot.

        Raises:
            ConfigError: files cannot be where they are wanted; so the ranks are lost.
            ResourceError: a rank has no room for its share, or was lost.
        """
        self._crew = crew
        self._own = own
        self._lock = threading.Lock()
        self._recalling: dict[int, Recalling] = {}  # number -> recall
        self._writing: dict[bytes, Writing] = {}  # key -> saving
        self._orphans: list[bytes] = []
        """Keys of files that some ranks have and some have not, so that nobody looks for them."""
        self._is_closing = False
        self._on_news: Callable[[News], None] = lambda _: None
        try:
            crew.tell(order)
            opened = crew.answers(TiersOpened)
        except RunnerLost as error:
            own.close()
            raise ResourceError(str(error)) from error
        except BaseException:
            own.close()
            raise
        elsewhere = [set(its.kept) for its in opened]
        self.kept: Sequence[bytes] = [key for key in own.kept if all(key in kept for kept in elsewhere)]
        """See Carrier.kept: of what all ranks have."""
        self.pinned_bytes = own.pinned_bytes + sum(its.pinned_bytes for its in opened)
        """See Carrier.pinned_bytes."""

    @property
    def has_leftovers(self) -> bool:
        """See Carrier.has_leftovers."""
        return bool(self._orphans)

    def keep(self, keys: Sequence[bytes]) -> None:
        """See Carrier.keep. Ranks that are lost are noticed elsewhere."""
        with suppress(RunnerLost):
            self._crew.tell(Keep(tuple(keys)))
        self._own.keep(keys)

    def start(self, on_news: Callable[[News], None]) -> None:
        """See Carrier.start."""
        self._on_news = on_news
        self._own.start(lambda news: self._hear(0, news))
        self._crew.listen_to_copies(self._hear)
        self._crew.listen(lambda _: self._give_up())

    def begin(self, copies: Copies) -> None:
        """See Carrier.begin."""
        with self._lock:
            self._recalling |= {recall.number: Recalling(recall) for recall in copies.recalls}
            self._writing |= {saving.key: Writing(saving.key) for saving in copies.savings}
            orphans, self._orphans = tuple(self._orphans), []
        if copies.recalls:
            self._crew.wait_for(_RECALLS)
        try:
            self._crew.tell(Move(copies, orphans))
        except RunnerLost:
            self._give_up()
            return
        self._own.delete(orphans)
        self._own.begin(copies)

    def close(self) -> None:
        """See Carrier.close. What one rank has written by then, and another has not, is deleted at the next start."""
        self._is_closing = True
        told = False
        with suppress(RunnerLost):
            self._crew.tell(CloseTiers())
            told = True
        self._own.close()
        if told:
            try:
                self._crew.answers(TiersClosed, _CLOSE_SECONDS)
            except TrierarchError as error:
                logger.warning("cached blocks were being copied: %s", error)
        self._give_up()

    def _hear(self, rank: int, news: News) -> None:
        """How a copy ended on one rank; any thread."""
        with self._lock:
            over = self._recall_ended(rank, news) if isinstance(news, Recalled) else self._saving_ended(rank, news)
            if over is not None and not self._is_closing:
                self._orphans += over.orphans
        if over is not None:
            self._on_news(over.outcome)

    def _recall_ended(self, rank: int, news: Recalled) -> Recalling | None:
        """The recall, if it has ended on all ranks now; it may have been given up before."""
        begun = self._recalling.get(news.number)
        if begun is None:
            return None
        begun.ended[rank] = news
        if len(begun.ended) < self._crew.num_ranks:
            self._crew.wait_for(_RECALLS)  # from now, since it goes on
            return None
        del self._recalling[news.number]
        if not self._recalling:
            self._crew.has_come(_RECALLS)
        return begun

    def _saving_ended(self, rank: int, news: Saved) -> Writing | None:
        """Likewise."""
        begun = self._writing.get(news.key)
        if begun is None:
            return None
        begun.ended[rank] = news
        return None if len(begun.ended) < self._crew.num_ranks else self._writing.pop(news.key)

    def _give_up(self) -> None:
        """Have all that was begun fail."""
        with self._lock:
            begun: list[Recalling | Writing] = [*self._recalling.values(), *self._writing.values()]
            self._recalling.clear()
            self._writing.clear()
            self._crew.has_come(_RECALLS)
        for one in begun:
            self._on_news(one.failure)
