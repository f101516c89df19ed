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


class Info(Protocol):
    """A gauge that says things by its labels: it has one set of them at a time."""

    def show(self, labels: Mapping[str, str], value: float) -> None:
        """Replace labels and value."""
        ...


class MetricRegistry(Protocol):
    """Makes the metrics."""

    def counter(self, name: str, description: str, labels: Mapping[str, str]) -> Counter:
        """A counter of the family `name`."""
        ...

    def gauge(self, name: str, description: str, labels: Mapping[str, str]) -> Gauge:
        """A gauge of the family `name`."""
        ...

    def info(self, name: str, description: str) -> Info:
        """The family `name` of nothing but this gauge, which nobody else asks for."""
        ...

    def histogram(self, name: str, description: str, labels: Mapping[str, str], buckets: Sequence[float]) -> Histogram:
        """A histogram of the family `name` with these upper bounds."""
        ...
