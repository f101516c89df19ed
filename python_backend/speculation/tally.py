"""Tally: counts what was guessed and what of it was right."""

from __future__ import annotations

from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.speculation.stats import DrafterStats, SpeculationStats


class Tally:
    """Counts since the start. One thread counts; any thread may read."""

    def __init__(self, max_draft_tokens: int) -> None:
        self._num_steps = 0
        self._num_steps_speculated = 0
        self._drafted = [0] * max_draft_tokens
        self._accepted = [0] * max_draft_tokens
        self._lengths = [0] * (max_draft_tokens + 1)
        self._drafters: dict[DrafterKind | None, DrafterStats] = {}

    def count_step(self, is_speculated: bool) -> None:
        """A step ran, with drafts to verify or without."""
        self._num_steps += 1
        self._num_steps_speculated += is_speculated

    def count_sequence(self, num_drafts: int, num_accepted: int) -> None:
        """One sequence drew in a step, behind so many drafts."""
        self._lengths[num_drafts] += 1
        for position in range(num_drafts):
            self._drafted[position] += 1
            self._accepted[position] += position < num_accepted

    def count_draft(self, kind: DrafterKind | None, num_drafts: int, num_accepted: int) -> None:
        """Whose drafts they were; None is the caller's own."""
        before = self._drafters.get(kind)
        self._drafters[kind] = DrafterStats(
            kind=kind,
            num_drafts=1 + (before.num_drafts if before else 0),
            num_draft_tokens=num_drafts + (before.num_draft_tokens if before else 0),
            num_accepted_tokens=num_accepted + (before.num_accepted_tokens if before else 0),
        )

    def stats(self) -> SpeculationStats:
        """A snapshot."""
        return SpeculationStats(
            drafters=tuple(self._drafters.values()),
            drafted_by_position=tuple(self._drafted),
            accepted_by_position=tuple(self._accepted),
            drafts_by_length=tuple(self._lengths),
            num_steps=self._num_steps,
            num_steps_speculated=self._num_steps_speculated,
        )
