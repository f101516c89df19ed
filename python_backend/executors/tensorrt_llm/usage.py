"""What a sequence cost, from our own clock and the library's performance metrics, where it gives any."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from trierarch.python_backend.executors.tensorrt_llm.llm import Generation
from trierarch.python_backend.request import Request, Usage


@dataclass(slots=True)
class Times:
    """When things happened, as seen from here: `time.monotonic_ns()`; 0 is not yet."""

    arrival_ns: int
    sent_ns: int = 0
    """To the library."""
    first_token_ns: int = 0
    last_token_ns: int = 0

    def draw(self) -> None:
        """Tokens came."""
        self.last_token_ns = time.monotonic_ns()
        self.first_token_ns = self.first_token_ns or self.last_token_ns


def usage_of(request: Request, num_output_tokens: int, times: Times, step: Generation | None, block_size: int) -> Usage:
    """Of a sequence that ended with `step`, or before any (None). What the library does not tell is 0.

    Times are of our clock: the library's own differ by the way between the two. Only how long a request waited in it is
    taken from there.
    """
    metrics = None if step is None else step.outputs[0].request_perf_metrics
    blocks = _part(metrics, "kv_cache_metrics")
    drafts = _part(metrics, "speculative_decoding")
    num_reused = _count(blocks, "num_reused_blocks")
    num_cached = getattr(step, "cached_tokens", None)
    if num_cached is None:
        num_cached = num_reused * block_size
    num_prompt_tokens = len(request.prompt_token_ids)
    return Usage(
        num_prompt_tokens=num_prompt_tokens,
        num_cached_tokens=min(int(num_cached), num_prompt_tokens),
        num_output_tokens=num_output_tokens,
        arrival_ns=times.arrival_ns,
        first_scheduled_ns=_first_scheduled(times, _part(metrics, "timing_metrics")),
        first_token_ns=times.first_token_ns,
        last_token_ns=times.last_token_ns,
        num_new_blocks=_count(blocks, "num_new_allocated_blocks"),
        num_reused_blocks=num_reused,
        num_draft_tokens=_count(drafts, "total_draft_tokens"),
        num_accepted_draft_tokens=_count(drafts, "total_accepted_draft_tokens"),
    )


def _first_scheduled(times: Times, timing: Any) -> int:
    waited = 0
    if timing is not None:
        waited = _nanoseconds(timing.first_scheduled_time) - _nanoseconds(timing.arrival_time)
    latest = times.first_token_ns or times.sent_ns
    return min(max(times.sent_ns, times.sent_ns + waited), latest)


def _nanoseconds(moment: timedelta) -> int:
    return round(moment.total_seconds() * 1e9)


def _part(metrics: Any, name: str) -> Any:
    return getattr(metrics, name, None)


def _count(part: Any, name: str) -> int:
    return int(getattr(part, name, 0) or 0)
