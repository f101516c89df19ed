"""StepCost: how long a step takes, by how many sequences it serves and how many tokens it computes."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import Final

_WEIGHT: Final = 0.1
"""Of the newest measurement in an average."""
_SLOPE: Final = 0.05
"""Until it is known better, each further token costs this share of a step of one token."""
_MOST: Final = 4.0
"""A step that takes this many times what was expected was disturbed, and counts as if it had taken just that."""
_LEAST: Final = 0.1
"""A step of fewer tokens than were ever measured takes this share of the smallest measured one at least."""
_FIRST_STEPS: Final = 3
"""Measurements of a size that are averaged evenly: the very first may be far off."""


class StepCost:
    """A table of measured seconds. What it lacks is filled in from the sizes around it.

    Sequences count by themselves, since each has a context to read, and tokens on top of that. Sizes that lie close
    together share an entry. For a number of sequences, times between two measured numbers of tokens are interpolated;
    beyond them, and for numbers of sequences not yet seen, the slope is taken from the curve of all measurements.
    """

    def __init__(self) -> None:
        self._curves: defaultdict[int, _Curve] = defaultdict(_Curve)  # bucket of num_sequences -> its own curve
        self._all = _Curve()

    def observe(self, num_sequences: int, num_tokens: int, seconds: float) -> None:
        """A step of `num_tokens` tokens, drafts included, took so long."""
        expected = self.seconds(num_sequences, num_tokens)
        if expected > 0.0:
            seconds = min(seconds, _MOST * expected)
        self._curves[_bucket(num_sequences)].add(num_tokens, seconds)
        self._all.add(num_tokens, seconds)

    def seconds(self, num_sequences: int, num_tokens: int) -> float:
        """What a step is expected to take; 0 before anything was measured."""
        curve = self._curves.get(_bucket(num_sequences))
        if curve is None:
            return self._all.at(num_tokens)
        return curve.at(num_tokens, self._all)


class _Curve:
    """Averages by bucket of tokens."""

    def __init__(self) -> None:
        self._tokens: list[int] = []  # buckets that were measured, ascending
        self._seconds: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    def add(self, num_tokens: int, seconds: float) -> None:
        bucket = _bucket(num_tokens)
        count = self._counts.get(bucket, 0)
        if count == 0:
            self._tokens.insert(bisect_left(self._tokens, bucket), bucket)
            self._seconds[bucket] = seconds
        else:
            weight = max(_WEIGHT, 1 / (count + 1)) if count < _FIRST_STEPS else _WEIGHT
            self._seconds[bucket] += weight * (seconds - self._seconds[bucket])
        self._counts[bucket] = count + 1

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
        slope = _SLOPE * self._seconds[self._tokens[0]]
        if len(self._tokens) > 1:
            first, last = self._tokens[0], self._tokens[-1]
            slope = max(0.0, (self._seconds[last] - self._seconds[first]) / (last - first))
        return slope * (num_tokens - measured)

    def spans(self, *sizes: int) -> bool:
        """Whether all `sizes` lie within what was measured."""
        return len(self._tokens) > 1 and self._tokens[0] <= min(sizes) and max(sizes) <= self._tokens[-1]


def _bucket(size: int) -> int:
    """Exact up to 8, then in steps of an eighth of a power of two: 9, 10, ... 16, 18, 20, ... 32, 36, ..."""
    if size <= 8:
        return size
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step
