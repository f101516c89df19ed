"""Mover: takes what the tiers' books ask for to whoever copies, and how that ended back to the books.

Whatever happens to a copy, the books hear of it: a sequence that waits for one never waits for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from trierarch.python_backend.executors.offload.carrier import Carrier, News
from trierarch.python_backend.kv.copies import Copies, Recalled
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.kv.offload import Offload
from trierarch.python_backend.kv.offload_stats import OffloadStats
from trierarch.python_backend.scheduling.plan import Plan


class Mover:
    """Between one KVCacheManager that has an Offload, and one Carrier, which it closes.

    `hear`, `take` and `stats` want the lock that guards the manager. All but `stats` are the executor's thread's.
    """

    def __init__(self, kv: KVCacheManager, carrier: Carrier) -> None:
        """The carrier starts."""
        assert kv.offload is not None, "a cache without tiers copies nothing"
        self._kv = kv
        self._offload: Offload = kv.offload
        self._carrier = carrier
        self._news: deque[News] = deque()
        self._on_news: Callable[[], None] = lambda: None
        carrier.start(self._tell)

    def listen(self, on_news: Callable[[], None]) -> None:
        """Call `on_news` when there is something to hear, on a thread of the carrier's."""
        self._on_news = on_news

    @property
    def has_news(self) -> bool:
        """Whether `hear` would tell the books anything."""
        return bool(self._news)

    @property
    def has_copies(self) -> bool:
        """Whether `begin` would do anything."""
        return self._offload.has_copies or self._carrier.has_leftovers

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
        """Copy what leaves, and let the carrier begin with the rest. Raises nothing."""
        self._carrier.begin(copies)

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
        return self._carrier.pinned_bytes

    def close(self) -> None:
        """Close the carrier, and tell the books, so that no block is held. Idempotent.

        The executor's thread must have ended.
        """
        self._carrier.close()
        self.hear()

    def _tell(self, news: News) -> None:
        self._news.append(news)
        self._on_news()
