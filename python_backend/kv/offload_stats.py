"""OffloadStats: what the tiers behind the device cache hold and did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStats:
    """Of one tier."""

    num_blocks: int
    """Held now."""
    num_bytes: int
    """That they take."""
    max_blocks: int
    num_hits: int
    """Blocks that came back to the device from here, since the start; so the rest."""
    num_stored: int
    """Blocks that came here."""
    num_evictions: int
    """Blocks that gave way to others."""
    num_failures: int
    """Copies from or to here that failed: blocks that were computed again, or were not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadStats:
    """Of both."""

    host: TierStats
    disk: TierStats | None
    """None where there is none."""
    num_recalls: int
    """Times that a sequence waited for blocks to come back."""
    num_dropped: int
    """Blocks that left the device and found no slot, since all were being copied."""
