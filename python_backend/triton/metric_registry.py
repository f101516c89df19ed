"""What a registry of metrics makes: Triton's in the server, a recording one in tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Counter(Protocol):
    """A value that only grows."""

    def increment(self, value: float) -> None:
        """Add to the value."""
        ...


class Gauge(Protocol):
    """A value that goes up and down."""

    def set(self, value: float) -> None:
        """Replace the value."""
        ...


class Histogram(Protocol):
    """Counts of values by bucket."""

    def observe(self, value: float) -> None:
        """Count one value."""
        ...


class MetricRegistry(Protocol):
    """Makes the metrics. One that nobody holds any more is gone."""

    def counter(self, name: str, description: str, labels: Mapping[str, str]) -> Counter:
        """A counter of the family `name`."""
        ...

    def gauge(self, name: str, description: str, labels: Mapping[str, str]) -> Gauge:
        """A gauge of the family `name`."""
        ...

    def histogram(self, name: str, description: str, labels: Mapping[str, str], buckets: Sequence[float]) -> Histogram:
        """A histogram of the family `name` with these upper bounds."""
        ...
