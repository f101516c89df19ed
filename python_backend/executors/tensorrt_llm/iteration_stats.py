"""IterationStats: what the library tells of its steps, which it does once, summed up for whoever asks.

The library's queue gives each record to one reader. So one task reads them all, and the latest is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.executors.tensorrt_llm.llm import LLM
from trierarch.python_backend.speculation.stats import DrafterStats, SpeculationStats

logger = logging.getLogger(__name__)

QUIET_SECONDS: Final = 2.0
"""Without a record, after which the library ends a reading; some releases start no other before the next request."""
_PAUSE_SECONDS: Final = 0.2
"""Between two readings while requests run."""
_IN_FLIGHT: Final = "inflightBatchingStats"
_KV_CACHE: Final = "kvCacheStats"
_DRAFTING: Final = "specDecodingStats"


class IterationStats:
    """Written by the executor's thread, read by any."""

    def __init__(self, drafter: DrafterKind | None) -> None:
        """`drafter`: who guesses, as the engine's record says; None where nobody is named."""
        self.num_steps = 0
        self.num_reused_blocks = 0
        """Since the start."""
        self._drafter = drafter
        self._latest: Mapping[str, Any] = {}
        self._num_drafts = self._num_draft_tokens = self._num_accepted_tokens = self._num_steps_speculated = 0

    async def read(self, llm: LLM, has_begun: asyncio.Event, is_busy: Callable[[], bool]) -> None:
        """Take every record, for ever; `has_begun` is set with each request, and cleared here."""
        while True:
            await has_begun.wait()
            has_begun.clear()
            try:
                async for record in llm.get_stats_async(QUIET_SECONDS):
                    self.take(record)
            except Exception:  # Statistics are worth no request.
                logger.exception("the statistics of TensorRT-LLM could not be read")
            await asyncio.sleep(_PAUSE_SECONDS)
            if is_busy():
                has_begun.set()

    def take(self, record: Mapping[str, Any]) -> None:
        """Count one step."""
        self._latest = record
        self.num_steps += 1
        self.num_reused_blocks = max(self.num_reused_blocks, self.kv_cache("reusedBlocks"))
        drafting = _part(record, _DRAFTING)
        num_drafts = _number(drafting, "numRequestsWithDraftTokens")
        self._num_drafts += num_drafts
        self._num_steps_speculated += num_drafts > 0
        self._num_draft_tokens += _number(drafting, "numDraftTokens")
        self._num_accepted_tokens += _number(drafting, "numAcceptedTokens")

    def general(self, name: str) -> int:
        """A number of the latest step; 0 where it is not told, so with the next two."""
        return _number(self._latest, name)

    def in_flight(self, name: str) -> int:
        """A number of the latest step's batch."""
        return _number(_part(self._latest, _IN_FLIGHT), name)

    def kv_cache(self, name: str) -> int:
        """A number of the KV cache after the latest step."""
        return _number(_part(self._latest, _KV_CACHE), name)

    def speculation(self) -> SpeculationStats:
        """All drafts so far. The library does not tell them apart by length, nor their tokens by place."""
        drafters: tuple[DrafterStats, ...] = ()
        if self._drafter is not None:
            drafters = (
                DrafterStats(
                    kind=self._drafter,
                    num_drafts=self._num_drafts,
                    num_draft_tokens=self._num_draft_tokens,
                    num_accepted_tokens=self._num_accepted_tokens,
                ),
            )
        return SpeculationStats(
            drafters=drafters,
            drafted_by_position=(),
            accepted_by_position=(),
            drafts_by_length=(),
            num_steps=self.num_steps,
            num_steps_speculated=self._num_steps_speculated,
        )


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = record.get(name)
    return part if isinstance(part, Mapping) else {}


def _number(record: Mapping[str, Any], name: str) -> int:
    value = record.get(name)
    return int(value) if isinstance(value, int | float) else 0
