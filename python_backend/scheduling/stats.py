"""SchedulerStats: a snapshot of scheduler and KV cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """Fields as in ExecutorStats, which adds what only the process knows."""

    num_active_requests: int
    num_scheduled_requests: int
    num_context_requests: int
    num_context_tokens: int
    num_paused_requests: int
    max_requests: int
    num_steps: int
    max_blocks: int
    used_blocks: int
    free_blocks: int
    reused_blocks: int
    tokens_per_block: int
    used_slots: int
