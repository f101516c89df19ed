"""KvEvents: what the library tells of the blocks that it keeps for prefixes, in the order in which it happened.

It tells of each event once, and holds no more than `event_buffer_max_size` until they are read.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict

from trierarch.python_backend.executors.kv_event import KvEvent, KvEventKind

logger = logging.getLogger(__name__)

MAX_EVENTS: Final = 4096
"""That are kept for whoever asks; the oldest go first."""


class EventCounts(TypedDict, total=False):
    """Fields of ExecutorStats."""

    cached_blocks: int
    stored_blocks: int
    removed_blocks: int
    lost_kv_events: int


class KvEvents:
    """Written by the executor's thread, read by any."""

    def __init__(self, max_events: int = MAX_EVENTS) -> None:
        self._lock = threading.Lock()
        self._events: deque[KvEvent] = deque(maxlen=max_events)
        self._num_events = 0
        self._last_id: int | None = None
        self._has_warned = False
        self.num_stored = 0
        """Blocks, since the start; so the next two."""
        self.num_removed = 0
        self.num_lost = 0
        """Events that the library dropped before they were read."""

    def counts(self) -> EventCounts:
        """As fields of ExecutorStats. How many are cached is right as far as no event was lost."""
        with self._lock:
            stored, removed, lost = self.num_stored, self.num_removed, self.num_lost
        return {
            "cached_blocks": max(0, stored - removed),
            "stored_blocks": stored,
            "removed_blocks": removed,
            "lost_kv_events": lost,
        }

    def take(self, record: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Keep what one record tells; some releases give several events at once. What is none is passed over."""
        for event in (record,) if isinstance(record, Mapping) else record:
            try:
                self._take(event)
            except (KeyError, TypeError, ValueError) as error:
                # Once, and without the event: it may have the tokens of a prompt.
                if not self._has_warned:
                    logger.warning("events of TensorRT-LLM's KV cache are unknown here: %s", type(error).__name__)
                self._has_warned = True

    def since(self, number: int) -> tuple[KvEvent, ...]:
        """Those from `number` on, in order; one whose first has another number begins after events that are gone."""
        with self._lock:
            return tuple(event for event in self._events if event.number >= number)

    def _take(self, event: Mapping[str, Any]) -> None:
        data = event["data"]
        kind = KvEventKind(data["type"])
        hashes, parent = _hashes(kind, data), None
        if kind is KvEventKind.STORED and data["parent_hash"] is not None:
            parent = _hash(data["parent_hash"])
        with self._lock:
            self._note(int(event["event_id"]))
            self._events.append(KvEvent(number=self._num_events, kind=kind, block_hashes=hashes, parent_hash=parent))
            self._num_events += 1
            self.num_stored += len(hashes) * (kind is KvEventKind.STORED)
            self.num_removed += len(hashes) * (kind is KvEventKind.REMOVED)

    def _note(self, event_id: int) -> None:
        """The library counts its events too, and a gap is what was lost."""
        if self._last_id is not None and event_id > self._last_id + 1:
            self.num_lost += event_id - self._last_id - 1
        self._last_id = event_id


def _hashes(kind: KvEventKind, data: Mapping[str, Any]) -> tuple[int, ...]:
    if kind is KvEventKind.STORED:
        return tuple(_hash(block["block_hash"]) for block in data["blocks"])
    if kind is KvEventKind.REMOVED:
        return tuple(_hash(block_hash) for block_hash in data["block_hashes"])
    return (_hash(data["block_hash"]),) if kind is KvEventKind.UPDATED else ()


def _hash(value: int | str) -> int:
    """Of 64 bits a number; SHA-256, which 1.3 can be told to take, is text."""
    return int(value, 16) if isinstance(value, str) else int(value)
