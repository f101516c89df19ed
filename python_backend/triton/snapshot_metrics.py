"""Gauges and counters that follow an executor's snapshots. A call costs Triton's Python backend some 20 µs, so that whatever
has not changed is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from trierarch.python_backend.triton.metric_registry import Counter, Gauge, MetricRegistry

S = TypeVar("S")
"""What a snapshot is."""


@dataclass(frozen=True, slots=True)
class CounterFamily(Generic[S]):
    """Counters of one name, told apart by one label."""

    name: str
    description: str
    label: str
    values: Mapping[str, Callable[[S], int]]
    """Value of the label -> what has been counted since the start."""

    def declared(
        self, registry: MetricRegistry, labels: Mapping[str, str]
    ) -> Iterator[tuple[Counter, Callable[[S], int]]]:
        """Each counter, `labels` beside its own, and what it counts."""
        for value, read in self.values.items():
            yield registry.counter(self.name, self.description, {**labels, self.label: value}), read


class FollowedCounters(Generic[S]):
    """Counters of what a snapshot has counted since the start."""

    def __init__(self, counters: Iterable[tuple[Counter, Callable[[S], int]]]) -> None:
        """All at 0."""
        self._counters = list(counters)
        self._counted = [0] * len(self._counters)

    def publish(self, stats: S) -> None:
        """Show a snapshot; older ones than the last are not given."""
        for index, (counter, count) in enumerate(self._counters):
            total = count(stats)
            if total > self._counted[index]:
                counter.increment(float(total - self._counted[index]))
                self._counted[index] = total


class FollowedGauges(Generic[S]):
    """Gauges of what a snapshot says."""

    def __init__(self, gauges: Iterable[tuple[Gauge, Callable[[S], float]]]) -> None:
        """Nothing is shown yet."""
        self._gauges = list(gauges)
        self._shown: list[float | None] = [None] * len(self._gauges)

    def publish(self, stats: S) -> None:
        """Show a snapshot."""
        for index, (gauge, read) in enumerate(self._gauges):
            value = float(read(stats))
            if value != self._shown[index]:
                gauge.set(value)
                self._shown[index] = value
