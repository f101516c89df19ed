"""SpeculationStats: what was guessed since the executor started, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from trierarch.builder.manifest import DrafterKind


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterStats:
    """Of one drafter. A draft counts once it was verified, not when it was proposed."""

    kind: DrafterKind | None
    """None is the callers' own drafts."""
    num_drafts: int
    """Of at least one token."""
    num_draft_tokens: int
    num_accepted_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationStats:
    """Counts that only grow, over all sequences."""

    drafters: tuple[DrafterStats, ...]
    """Each kind once."""
    drafted_by_position: tuple[int, ...]
    """[i] counts drafts that had a token i (the first is 0) verified. Of any length up to the engine's max_draft_tokens."""
    accepted_by_position: tuple[int, ...]
    """[i] counts drafts whose tokens up to i were all accepted. As long as `drafted_by_position`."""
    drafts_by_length: tuple[int, ...]
    """[n] counts the times that one step verified n draft tokens of one sequence; [0] where it decoded without any."""
    num_steps: int
    num_steps_speculated: int
    """Of these, steps that verified a draft of any sequence."""
