"""Carrier: makes the copies that the books of the tiers ask for, and says how each ended."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from typing import Protocol

from trierarch.python_backend.executors.offload.block_copier import BlockCopier
from trierarch.python_backend.executors.offload.block_files import BlockFiles, UnusableBlock
from trierarch.python_backend.kv.copies import Arrival, Copies, Leaving, Recall, Recalled, Saved, Saving, Tier

logger = logging.getLogger(__name__)

News = Recalled | Saved
"""How a recall or a saving ended. Each that is begun has one, whatever happens to it."""


class Carrier(Protocol):
    """Copies contents; whose they are, and what is worth it, is decided elsewhere."""

    @property
    def kept(self) -> Sequence[bytes]:
        """Keys of what was on disk at the start, the longest unused first."""
        ...

    @property
    def pinned_bytes(self) -> int:
        """Of page-locked host memory."""
        ...

    @property
    def has_leftovers(self) -> bool:
        """Whether `begin` is wanted though there is nothing to copy: there are files that nobody will look for."""
        ...

    def keep(self, keys: Sequence[bytes]) -> None:
        """Delete all that was on disk at the start, but for these."""
        ...

    def start(self, on_news: Callable[[News], None]) -> None:
        """From now on `begin` may be called; `on_news` is, on other threads."""
        ...

    def begin(self, copies: Copies) -> None:
        """Copy what leaves, and begin with the rest. Raises nothing. The executor's thread only."""
        ...

    def close(self) -> None:
        """End after the copies that are being made; all news has come on return. Idempotent.

        The executor's thread must have ended.
        """
        ...


class LocalCarrier:
    """Implements Carrier for blocks of this process. Owns its files.

    What leaves the device is copied on the executor's thread, right before the step that would write over it. What comes back is
    copied by one thread and what goes to disk by another, so that neither waits for the other nor a step for them.
    """

    def __init__(self, copier: BlockCopier, files: BlockFiles | None = None) -> None:
        """files: of the disk tier, where there is one."""
        self._copier = copier
        self._files = files
        self._on_news: Callable[[News], None] = lambda _: None
        self._bad_slots: set[int] = set()
        """Whose content never came: what would be read from them is lost."""
        self._is_closing = False
        self._recalls: SimpleQueue[Recall | None] = SimpleQueue()
        self._savings: SimpleQueue[Saving | tuple[bytes, ...] | None] = SimpleQueue()  # keys are to be deleted
        self._threads: tuple[threading.Thread, ...] = ()

    @property
    def kept(self) -> Sequence[bytes]:
        """See Carrier.kept."""
        return () if self._files is None else self._files.kept

    @property
    def pinned_bytes(self) -> int:
        """See Carrier.pinned_bytes."""
        return self._copier.pinned_bytes

    @property
    def has_leftovers(self) -> bool:
        """See Carrier.has_leftovers."""
        return False

    def keep(self, keys: Sequence[bytes]) -> None:
        """See Carrier.keep."""
        if self._files is not None:
            self._files.keep(keys)

    def start(self, on_news: Callable[[News], None]) -> None:
        """See Carrier.start."""
        self._on_news = on_news
        self._threads = (
            threading.Thread(target=self._run_recalls, name="trierarch-kv-recall", daemon=True),
            threading.Thread(target=self._run_savings, name="trierarch-kv-disk", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def begin(self, copies: Copies) -> None:
        """See Carrier.begin."""
        self._leave(copies.leaving)
        for recall in copies.recalls:
            self._recalls.put(recall)
        for saving in copies.savings:
            self._savings.put(saving)

    def delete(self, keys: tuple[bytes, ...]) -> None:
        """Let files go, before those that are written for what begins later."""
        if keys:
            self._savings.put(keys)

    def close(self) -> None:
        """See Carrier.close."""
        self._is_closing = True
        self._recalls.put(None)
        self._savings.put(None)
        for thread in self._threads:
            thread.join()
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
            self._on_news(self._recalled(recall))

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
                self._files.delete(arrival.key)  # nobody will look for it
            lost.add(arrival.key)
        return lost

    def _run_savings(self) -> None:
        while (saving := self._savings.get()) is not None:
            if isinstance(saving, Saving):
                self._delete(saving.deleted)
                self._on_news(Saved(saving.key, self._save(saving)))
            else:
                self._delete(saving)

    def _save(self, saving: Saving) -> bool:
        assert self._files is not None, "there is no disk tier"
        if self._is_closing or saving.slot in self._bad_slots:
            return False
        try:
            return self._files.write(saving.key, self._copier.pieces(saving.slot))
        except Exception:
            logger.exception("a block could not be written to disk")
            return False

    def _delete(self, keys: tuple[bytes, ...]) -> None:
        if self._files is not None:
            for key in keys:
                self._files.delete(key)
