"""Intervals of time: what a device did while it was profiled."""

from __future__ import annotations

from collections.abc import Iterable

Interval = tuple[float, float]
"""Begin and end."""


def idle_share(intervals: Iterable[Interval]) -> float:
    """Of the time from the first interval's begin to the last end, the share that none of them covers.

    Raises:
        ValueError: there are none, or they last no time.
    """
    ordered = sorted(intervals)
    if not ordered:
        raise ValueError("nothing was recorded")
    first, reached = ordered[0][0], ordered[0][0]
    idle = 0.0
    for begin, end in ordered:
        idle += max(0.0, begin - reached)
        reached = max(reached, end)
    if reached <= first:
        raise ValueError("what was recorded lasted no time")
    return idle / (reached - first)
