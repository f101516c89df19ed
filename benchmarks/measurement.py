"""Measurement: repeats of one figure of one subject, and what is said of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MAX_FOREIGN_SHARE: Final = 0.05
"""Share of the machine's processors that others may use during a repeat that counts as quiet."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One repeat."""

    value: float
    foreign_share: float = 0.0
    """Share of all processors' time that went to processes which do not belong to the subject, stolen time included."""

    @property
    def is_disturbed(self) -> bool:
        """Whether others used more of the machine than a fair repeat allows."""
        return self.foreign_share > MAX_FOREIGN_SHARE


@dataclass(frozen=True, slots=True)
class Measurement:
    """At least one sample."""

    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        """Raise ValueError where there is nothing to speak of."""
        if not self.samples:
            raise ValueError("a measurement has at least one sample")

    @classmethod
    def of(cls, values: Iterable[float]) -> Measurement:
        """Samples taken on a quiet machine, or of what no other process can disturb."""
        return cls(tuple(Sample(value) for value in values))

    @property
    def values(self) -> tuple[float, ...]:
        """In the order they were taken."""
        return tuple(sample.value for sample in self.samples)

    @property
    def median(self) -> float:
        """What the table shows."""
        return statistics.median(self.values)

    @property
    def is_disturbed(self) -> bool:
        """Whether any repeat was."""
        return any(sample.is_disturbed for sample in self.samples)

    def share_of(self, whole: Measurement) -> Measurement:
        """Repeat by repeat, this over `whole`, in percent: taken together, so that a drift of the host cancels out."""
        return self._over(whole, 100)

    def times(self, other: Measurement) -> Measurement:
        """Repeat by repeat, how many times `other` this is."""
        return self._over(other, 1)

    def _over(self, other: Measurement, scale: float) -> Measurement:
        return Measurement(
            tuple(
                Sample(scale * mine.value / theirs.value, max(mine.foreign_share, theirs.foreign_share))
                for mine, theirs in zip(self.samples, other.samples, strict=True)
            )
        )
