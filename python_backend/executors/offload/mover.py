"""Mover: makes the copies that the tiers ask for, beside the steps.

What leaves the device is copied on the executor's thread, right before the step that would write over it. What comes back is
copied by one thread and what goes to disk by another, so that neither waits for the other nor a step for them. Whatever
happens to a copy, the books hear of it: a sequence that waits for one never waits for ever.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue

from trierarch.python_backend.executors.offload.block_copier import BlockCopier
from trierarch.python_backend.executors.offload.block_files import BlockFiles, UnusableBlock
from trierarch.python_backend.kv.copies import Arrival, Copies, Leaving, Recall, Recalled, Saved, Saving, Tier
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.kv.offload import Offload
from trierarch.python_backend.kv.offload_stats import OffloadStats
from trierarch.python_backend.scheduling.plan import Plan

logger = logging.getLogger(__name__)


class Mover:
    """Between one KVCacheManager that has an Offload, and one BlockCopier. Owns the threads, and the files.

    `hear`, `take` and `stats` want the lock that guards the manager. All but `stats` are the executor's thread's.
    """

    def __init__(self, kv: KVCacheManager, copier: BlockCopier, files: BlockFiles | None = None) -> None:
        """files: of the disk tier, where there is one."""
        assert kv.offload is not None, "a cache without tiers copies nothing"
        self._kv = kv
        self._offload: Offload = kv.offload
        self._copier = copier
        self._files = files
        self._news: deque[Recalled | Saved] = deque()
        self._on_news: Callable[[], None] = lambda: None
        self._bad_slots: set[int] = set()
        """Whose content never came: what would be read from them is lost."""
        self._is_closing = False
        self._recalls: SimpleQueue[Recall | None] = SimpleQueue()
        self._savings: SimpleQueue[Saving | None] = SimpleQueue()
        self._threads = (
            threading.Thread(target=self._run_recalls, name="trierarch-kv-recall", daemon=True),
            threading.Thread(target=self._run_savings, name="trierarch-kv-disk", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def listen(self, on_news: Callable[[], None]) -> None:
        """Call `on_news` when there is something to hear, on a thread of the mover's."""
        self._on_news = on_news

    @property
    def has_news(self) -> bool:
        """Whether `hear` would tell the books anything."""
        return bool(self._news)

    @property
    def has_copies(self) -> bool:
        """Whether `begin` would do anything."""
        return self._offload.has_copies

    def hear(self) -> None:
        """Tell the books which copies are over."""
        while self._news:
            news = self._news.popleft()
            if isinstance(news, Recalled):
                self._kv.recalled(news)
            else:
                self._offload.saved(news)

    def take(self) -> Copies:
        """What is to be copied before the next step."""
        return self._offload.take_copies()

    def begin(self, copies: Copies) -> None:
        """Copy what leaves, and let the threads begin with the rest. Raises nothing."""
        self._leave(copies.leaving)
        for recall in copies.recalls:
            self._recalls.put(recall)
        for saving in copies.savings:
            self._savings.put(saving)

    def observe_step(self, plan: Plan, seconds: float) -> None:
        """A plan took so long. One that mostly draws says nothing of how fast prompts are computed."""
        if 2 * plan.num_context_tokens >= plan.num_tokens:
            self._offload.payoff.observe_step(plan.num_tokens, seconds)

    def stats(self) -> OffloadStats:
        """A snapshot."""
        return self._offload.stats()

    @property
    def pinned_bytes(self) -> int:
        """Of page-locked host memory."""
        return self._copier.pinned_bytes

    def close(self) -> None:
        """End the threads after the copy that each is at, and tell the books, so that no block is held. Idempotent.

        The executor's thread must have ended.
        """
        self._is_closing = True
        self._recalls.put(None)
        self._savings.put(None)
        for thread in self._threads:
            thread.join()
        self.hear()
        if self._files is not None:
            self._files.close()

    def _leave(self, leaving: tuple[Leaving, ...]) -> None:
        slots = {one.slot for one in leaving}
        try:
            self._copier.leave(leaving)
        except Exception:  # The device has no room to stage them, say: they are as good as evicted.
            logger.exception("%d blocks could not be copied to host memory", len(leaving))
            self._bad_slots |= slots
        else:
            self._bad_slots -= slots

    def _run_recalls(self) -> None:
        while (recall := self._recalls.get()) is not None:
            self._tell(self._recalled(recall))

    def _recalled(self, recall: Recall) -> Recalled:
        lost: set[bytes] = set()
        seconds: dict[Tier, float] = {}
        for tier in Tier:
            arrivals = [arrival for arrival in recall.arrivals if arrival.tier is tier]
            if not arrivals:
                continue
            started = time.perf_counter()
            lost |= self._bring(arrivals) if tier is Tier.HOST else self._read(arrivals)
            seconds[tier] = time.perf_counter() - started
        return Recalled(recall.number, frozenset(lost), seconds)

    def _bring(self, arrivals: list[Arrival]) -> set[bytes]:
        """Keys of those that could not be brought back."""
        good = [arrival for arrival in arrivals if arrival.slot not in self._bad_slots]
        lost = {arrival.key for arrival in arrivals} - {arrival.key for arrival in good}
        try:
            self._copier.bring(good)
        except Exception:
            logger.exception("%d blocks could not be brought back from host memory", len(good))
            lost |= {arrival.key for arrival in good}
        return lost

    def _read(self, arrivals: Iterable[Arrival]) -> set[bytes]:
        assert self._files is not None
        lost: set[bytes] = set()
        for arrival in arrivals:
            try:
                if not self._is_closing:
                    self._copier.fill(arrival.block_id, self._files.read(arrival.key))
                    continue
            except UnusableBlock as error:
                logger.warning("a cached block is not used, and computed again: %s", error)
            except Exception:
                logger.exception("a block could not be brought back from disk")
            lost.add(arrival.key)
        return lost

    def _run_savings(self) -> None:
        while (saving := self._savings.get()) is not None:
            self._tell(Saved(saving.key, self._save(saving)))

    def _save(self, saving: Saving) -> bool:
        assert self._files is not None
        for key in saving.deleted:
            self._files.delete(key)
        if self._is_closing or saving.slot in self._bad_slots:
            return False
        try:
            return self._files.write(saving.key, self._copier.pieces(saving.slot))
        except Exception:
            logger.exception("a block could not be written to disk")
            return False

    def _tell(self, news: Recalled | Saved) -> None:
        self._news.append(news)
        self._on_news()
