"""Pace: the tokens a second that steps have made lately, by how many sequences they drew for."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

_FORGET: Final = 0.98
"""What a step counts for, one step later."""


class Pace:
    """Sums of tokens and seconds, the older the less they count."""

    def __init__(self) -> None:
        self._sums: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])  # number of sequences -> sums

    def observe(self, num_sequences: int, num_tokens: float, seconds: float) -> None:
        """A step drew `num_tokens` tokens for so many sequences and took so long."""
        sums = self._sums[num_sequences]
        sums[0] = sums[0] * _FORGET + num_tokens
        sums[1] = sums[1] * _FORGET + seconds

    def rate(self, num_sequences: int) -> float:
        """Tokens a second of such steps; 0 where there were none."""
        num_tokens, seconds = self._sums.get(num_sequences, (0.0, 0.0))
        return num_tokens / seconds if seconds > 0.0 else 0.0
