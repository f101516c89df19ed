"""What a request's tensors say about keeping its cached blocks, in the contract's words: -1 is no end, and for good."""

from __future__ import annotations

from typing import Final

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.request import RetainedRange, Retention
from trierarch.python_backend.triton.inputs import Inputs

STARTS: Final = "retention_token_range_starts"
ENDS: Final = "retention_token_range_ends"
PRIORITIES: Final = "retention_token_range_priorities"
DURATIONS: Final = "retention_token_range_durations_ms"
DECODE_PRIORITY: Final = "retention_decode_priority"
DECODE_DURATION: Final = "retention_decode_duration_ms"
NAMES: Final = {
    "retention.start": STARTS,
    "retention.end": ENDS,
    "retention.priority": PRIORITIES,
    "retention.duration_ms": DURATIONS,
    "retention.decode_priority": DECODE_PRIORITY,
    "retention.decode_duration_ms": DECODE_DURATION,
}
"""Our name of a field -> the tensor it came from."""


def read_retention(inputs: Inputs) -> Retention | None:
    """The wishes of a row; None where it has none.

    Raises:
        InvalidRequest: a value out of range, or tensors of ranges that differ in length.
    """
    starts = inputs.integers(STARTS) or ()
    decode_priority, decode_duration = inputs.integer(DECODE_PRIORITY), inputs.integer(DECODE_DURATION)
    ends, priorities = _column(inputs, ENDS, len(starts)), _column(inputs, PRIORITIES, len(starts))
    durations = _column(inputs, DURATIONS, len(starts)) if DURATIONS in inputs else (-1,) * len(starts)
    if not starts and decode_priority is None and decode_duration is None:
        return None
    ranges = [
        RetainedRange(start, _limit(end), priority, _limit(duration))
        for start, end, priority, duration in zip(starts, ends, priorities, durations, strict=True)
    ]
    return Retention(
        ranges=tuple(sorted(ranges, key=lambda each: each.start)),
        decode_priority=decode_priority,
        decode_duration_ms=None if decode_duration is None else _limit(decode_duration),
    )


def _column(inputs: Inputs, name: str, length: int) -> tuple[int, ...]:
    values = inputs.integers(name) or ()
    if len(values) != length:
        raise InvalidRequest(name, len(values), f"needs one value a range: {length}, as {STARTS} has")
    return values


def _limit(value: int) -> int | None:
    return None if value == -1 else value
