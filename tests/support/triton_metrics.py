"""A metric registry that remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Cell:
    """A gauge, a counter or a histogram: every value it was given."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def set(self, value: float) -> None:
        self.values.append(value)

    def increment(self, value: float) -> None:
        assert value > 0
        self.values.append(value)

    def observe(self, value: float) -> None:
        self.values.append(value)


class RecordingInfo:
    """Everything that an Info was told."""

    def __init__(self) -> None:
        self.shown: list[tuple[dict[str, str], float]] = []

    def show(self, labels: Mapping[str, str], value: float) -> None:
        self.shown.append((dict(labels), value))


class RecordingRegistry:
    """Implements MetricRegistry."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, frozenset[tuple[str, str]]], Cell] = {}
        self.infos: dict[str, RecordingInfo] = {}

    def gauge(self, name: str, description: str, labels: Mapping[str, str]) -> Cell:
        assert description
        return self.cells.setdefault((name, frozenset(labels.items())), Cell())

    def counter(self, name: str, description: str, labels: Mapping[str, str]) -> Cell:
        return self.gauge(name, description, labels)

    def info(self, name: str, description: str) -> RecordingInfo:
        assert description
        assert name not in self.infos
        self.infos[name] = RecordingInfo()
        return self.infos[name]

    def histogram(self, name: str, description: str, labels: Mapping[str, str], buckets: Sequence[float]) -> Cell:
        assert list(buckets) == sorted(buckets)
        return self.gauge(name, description, labels)

    def values(self, name: str, **labels: str) -> list[float]:
        """What the one cell of `name` with these labels was given."""
        wanted = set(labels.items())
        (found,) = [cell for (family, carried), cell in self.cells.items() if family == name and wanted <= carried]
        return found.values
