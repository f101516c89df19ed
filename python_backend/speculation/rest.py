"""Rest: when guessing costs more time than it saves, most steps go without."""

from __future__ import annotations

from typing import Final

_AWAKE_STEPS: Final = 8
"""Steps in a row that guess before it is judged whether they paid; what a drafter learns, it learns in them."""
_SHORTEST: Final = 8
_LONGEST: Final = 256
_WEIGHT: Final = 0.1
"""Of the newest step in the average."""


class Rest:
    """Even guesses from text take time, a few hundredths of a step of many sequences, whether or not they are followed.

    Steps that guess come in bouts. A bout that has brought less than its time is worth is followed by a rest, the longer
    the more often that happened; one that has paid is followed by the next at once. When the load falls, what was
    too dear may pay, and a rest ends.
    """

    def __init__(self) -> None:
        self._mean = 0.0
        self._num_awake = 0  # steps of this bout
        self._num_left = 0  # steps that still rest
        self._length = _SHORTEST
        self._load = 0

    def is_over(self, load: int) -> bool:
        """Whether this step is to guess, at a load of so many sequences. Called once for each step that may."""
        if load < self._load:
            self._num_left, self._length = 0, _SHORTEST
        self._load = load
        if self._num_left == 0:
            return True
        self._num_left -= 1
        return False

    def note(self, gain: float) -> None:
        """A step guessed, and is expected to have gained so many tokens beyond what the time for guessing is worth."""
        self._num_awake += 1
        weight = max(_WEIGHT, 1 / self._num_awake)
        self._mean += weight * (gain - self._mean)
        if self._num_awake < _AWAKE_STEPS:
            return
        if self._mean >= 0.0:
            self._length = _SHORTEST
            return
        self._num_left, self._num_awake = self._length, 0
        self._length = min(2 * self._length, _LONGEST)
