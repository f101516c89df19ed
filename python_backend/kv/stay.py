"""Stay: how long a cached block that nobody holds is to stay, as its request asked for; TensorRT-LLM's retention."""

from __future__ import annotations

from dataclasses import dataclass

from trierarch.python_backend.request import Request


@dataclass(frozen=True, slots=True)
class Stay:
    """A block's place in the order of eviction."""

    priority: int
    """Of two cached blocks the one of the lower is evicted first, whichever was used last."""
    seconds: float | None
    """For how long, from when nobody holds it any more; None is until it is evicted."""


def stay_of(request: Request, start: int, end: int) -> Stay | None:
    """Of a block that holds the tokens from `start` up to `end`; None where the request says nothing of them.

    Where it says different things of them the highest priority counts, and of equals the longest stay.
    """
    retention = request.retention
    if retention is None:
        return None
    num_prompt_tokens = len(request.prompt_token_ids)
    stays = [
        _stay(each.priority, each.duration_ms)
        for each in retention.ranges
        if start < num_prompt_tokens and each.start < end and (each.end is None or each.end > start)
    ]
    if end > num_prompt_tokens and retention.decode_priority is not None:
        stays.append(_stay(retention.decode_priority, retention.decode_duration_ms))
    return max(stays, key=_rank, default=None)


def _stay(priority: int, duration_ms: int | None) -> Stay:
    return Stay(priority, None if duration_ms is None else duration_ms / 1000)


def _rank(stay: Stay) -> tuple[int, bool, float]:
    return stay.priority, stay.seconds is None, stay.seconds or 0.0
