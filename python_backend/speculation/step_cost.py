"""StepCost: how long a step takes, by how many sequences it serves and how many tokens it computes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict, deque
from typing import Final

_KEPT: Final = 15
"""Latest measurements of a size, whose median counts: some steps are disturbed, and one of those must not stand for all."""
_STALE: Final = 256
"""A size that so many steps were not of is forgotten. What seemed too dear is not tried, so nobody else would correct it."""
_SLOPE: Final = 0.05
"""Until it is known better, each further token costs this share of a step of one token."""
_PRESUMED_TOKENS: Final = 4
"""Tokens that the presumed slope counts for beside what was measured: noise over a short span makes any slope."""
_LEAST: Final = 0.1
"""A step of fewer tokens than were ever measured takes this share of the smallest measured one at least."""


class StepCost:
    """A table of measured seconds. What it lacks is filled in from the sizes around it.

    Sequences count by themselves, since each has a context to read, and tokens on top of that. Sizes that lie close
    together share an entry, the median of its latest measurements. For a number of sequences, times between two measured
    numbers of tokens are interpolated; beyond them, and for numbers of sequences not yet seen, the slope is taken from the
    curve of all measurements.
    """

    def __init__(self) -> None:
        self._curves: defaultdict[int, _Curve] = defaultdict(_Curve)  # bucket of num_sequences -> its own curve
        self._all = _Curve()

    def observe(self, num_sequences: int, num_tokens: int, seconds: float) -> None:
        """A step of `num_tokens` tokens, drafts included, took so long."""
        self._curves[_bucket(num_sequences)].add(num_tokens, seconds, self._all)
        self._all.add(num_tokens, seconds)

    def seconds(self, num_sequences: int, num_tokens: int) -> float:
        """What a step is expected to take; 0 before anything was measured."""
        curve = self._curves.get(_bucket(num_sequences))
        if curve is None:
            return self._all.at(num_tokens)
        return curve.at(num_tokens, self._all)


class _Curve:
    """Medians by bucket of tokens."""

    def __init__(self) -> None:
        self._tokens: list[int] = []  # buckets that were measured, ascending
        self._seconds: dict[int, float] = {}
        self._latest: dict[int, deque[float]] = {}
        self._measured: dict[int, int] = {}  # bucket -> when, in steps
        self._num_steps = 0

    def add(self, num_tokens: int, seconds: float, fallback: _Curve | None = None) -> None:
        """One more measurement. Of a size that was not measured before, what was expected counts for one."""
        bucket = _bucket(num_tokens)
        self._num_steps += 1
        latest = self._latest.get(bucket)
        if latest is None:
            expected = self.at(bucket, fallback)
            latest = self._latest[bucket] = deque([expected] if expected > 0.0 else (), _KEPT)
            insort(self._tokens, bucket)
        latest.append(seconds)
        self._seconds[bucket] = sorted(latest)[(len(latest) - 1) // 2]
        self._measured[bucket] = self._num_steps
        if self._num_steps % _STALE == 0:
            self._forget()

    def _forget(self) -> None:
        stale = [bucket for bucket, step in self._measured.items() if self._num_steps - step >= _STALE]
        for bucket in stale:
            self._tokens.remove(bucket)
            del self._seconds[bucket], self._latest[bucket], self._measured[bucket]

    def at(self, num_tokens: int, fallback: _Curve | None = None) -> float:
        """Interpolated seconds; beyond what was measured, the nearest plus `fallback`'s difference (or a guess)."""
        if not self._tokens:
            return 0.0
        place = bisect_left(self._tokens, num_tokens)
        if place < len(self._tokens) and self._tokens[place] == num_tokens:
            return self._seconds[num_tokens]
        if 0 < place < len(self._tokens):
            low, high = self._tokens[place - 1], self._tokens[place]
            share = (num_tokens - low) / (high - low)
            return self._seconds[low] + share * (self._seconds[high] - self._seconds[low])
        nearest = self._tokens[0] if place == 0 else self._tokens[-1]
        difference = self._difference(nearest, num_tokens, fallback)
        # Measurements are noisy, but no step gets shorter by computing more, nor takes no time at all.
        least = self._seconds[nearest] * (1.0 if num_tokens > nearest else _LEAST)
        return max(least, self._seconds[nearest] + difference)

    def _difference(self, measured: int, num_tokens: int, fallback: _Curve | None) -> float:
        """Seconds that `num_tokens` take beyond those of a `measured` number."""
        if fallback is not None and fallback.spans(measured, num_tokens):
            return fallback.at(num_tokens) - fallback.at(measured)
        first, last = self._tokens[0], self._tokens[-1]
        presumed = _SLOPE * self._seconds[first] / (1.0 + _SLOPE * (first - 1))
        rise = self._seconds[last] - self._seconds[first] + _PRESUMED_TOKENS * presumed
        return max(0.0, rise / (last - first + _PRESUMED_TOKENS)) * (num_tokens - measured)

    def spans(self, *sizes: int) -> bool:
        """Whether all `sizes` lie within what was measured."""
        return len(self._tokens) > 1 and self._tokens[0] <= min(sizes) and max(sizes) <= self._tokens[-1]


def _bucket(size: int) -> int:
    """Exact up to 8, then in steps of an eighth of a power of two: 9, 10, ... 16, 18, 20, ... 32, 36, ..."""
    if size <= 8:
        return size
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step
