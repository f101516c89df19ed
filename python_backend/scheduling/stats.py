"""SchedulerStats: a snapshot of scheduler and KV cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """Counted between two steps; what concerns a step is of the last one planned."""

    num_active_requests: int
    """Waiting or running."""
    num_scheduled_requests: int
    """In the last step."""
    num_context_requests: int
    """Of those, still computing their prompt."""
    num_context_tokens: int
    """Prompt tokens computed by the last step."""
    num_paused_requests: int
    """Preempted and not yet back."""
    max_requests: int
    num_steps: int
    max_blocks: int
    used_blocks: int
    """Held by running sequences, or being filled for one that waits."""
    free_blocks: int
    """Free at once, cached prefixes nobody holds included."""
    reused_blocks: int
    """Prefix hits since start, in blocks."""
    tokens_per_block: int
    used_slots: int
    """KV slots of used blocks that hold a token; 1 - used_slots / (used_blocks * tokens_per_block) is waste."""
    cached_blocks: int = 0
    """Blocks that hold a prefix, whoever has it."""
    stored_blocks: int = 0
    """Blocks that began to, since start."""
    removed_blocks: int = 0
    """Blocks that ceased to, to hold something else."""
