"""IterationStats: what the library tells of its steps, which it does once, summed up for whoever asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.speculation.stats import DrafterStats, SpeculationStats

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
