"""Stretches: whether the next steps are guessed for, or launched one behind the other, by what either was worth.

Who guesses has to know each token before the next step, so that a device waits for the host between steps; a step that is launched
behind the one before it waits for nobody (scheduling/ahead.py), and nobody guesses for it. Which of the two makes more tokens a
second depends on texts, sequences and machine, and is measured: one is the favourite for a stretch of steps, then the other is
tried for a few, and the better one goes on, for longer stretches the longer it stays the better one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TRIAL: Final = 12
"""Steps for which the one that is not the favourite is tried."""
SHORTEST: Final = 32
"""Steps of a favourite's first stretch."""
LONGEST: Final = 512
"""Steps after which the other one is tried in any case: what is lost by trials is a fiftieth of what they differ by."""
_RAMP: Final = 3
"""Steps at the beginning of a stretch that do not count: guesses are weighed anew, or the first step has none behind it."""
_SIMILAR: Final = 1.5
"""Numbers of sequences further apart say nothing of each other."""


@dataclass(frozen=True, slots=True)
class _Worth:
    """Of a stretch."""

    rate: float
    """Tokens a second for each sequence."""
    num_sequences: float
    """In the mean of its steps."""

    def is_like(self, other: _Worth) -> bool:
        """Whether both are of about as many sequences."""
        least, most = sorted((self.num_sequences, other.num_sequences))
        return most <= _SIMILAR * least


class Stretches:
    """Steps are guessed for at first."""

    def __init__(self) -> None:
        """Nothing is known of either."""
        self.is_launching = False
        """Whether steps are to be launched now, where they can be."""
        self._prefers_launching = False
        self._length = SHORTEST
        self._num_left = SHORTEST
        self._num_done = 0
        self._worth: dict[bool, _Worth] = {}  # whether steps were launched -> of the last such stretch
        self._num_steps = self._num_sequences = self._num_tokens = 0
        self._seconds = 0.0

    def observe(self, was_launched: bool, num_sequences: int, num_tokens: int, seconds: float) -> None:
        """A step without any part of a prompt drew `num_tokens` tokens for `num_sequences` sequences.

        seconds: from the end of the step before it to its own, what the host did between them included.
        """
        self._num_done += 1
        # What could not be launched, for a penalty or a grammar, says nothing of launching.
        if self._num_done > _RAMP and was_launched == self.is_launching:
            self._num_steps += 1
            self._num_sequences += num_sequences
            self._num_tokens += num_tokens
            self._seconds += seconds
        self._num_left -= 1
        if not self._num_left:
            self._end()

    def _end(self) -> None:
        if self._seconds > 0.0:
            num_sequences = self._num_sequences / self._num_steps
            self._worth[self.is_launching] = _Worth(self._num_tokens / self._seconds / num_sequences, num_sequences)
        else:
            self._worth.pop(self.is_launching, None)
        if self.is_launching == self._prefers_launching:
            self.is_launching, self._num_left = not self._prefers_launching, TRIAL
        else:
            self._judge()
            self.is_launching, self._num_left = self._prefers_launching, self._length
        self._num_done = self._num_steps = self._num_sequences = self._num_tokens = 0
        self._seconds = 0.0

    def _judge(self) -> None:
        """Behind a trial: who is the favourite now, and for how long."""
        favourite, other = (self._worth.get(one) for one in (self._prefers_launching, not self._prefers_launching))
        is_better = other is not None and (
            favourite is None or (other.is_like(favourite) and other.rate > favourite.rate)
        )
        is_known = favourite is not None and other is not None and other.is_like(favourite)
        if is_better:
            self._prefers_launching = not self._prefers_launching
        self._length = min(2 * self._length, LONGEST) if is_known and not is_better else SHORTEST
