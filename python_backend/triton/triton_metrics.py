"""TritonRegistry: metrics on Triton's own metrics port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import triton_python_backend_utils as pb

from trierarch.python_backend.triton.metric_registry import Counter, Gauge, Histogram, Info


class TritonInfo:
    """Implements Info. A metric of Triton's stays on the port as long as its family, so each has a family of its own."""

    def __init__(self, name: str, description: str) -> None:
        """Nothing is shown yet."""
        self._name = name
        self._description = description
        self._family: Any = None
        self._metric: Any = None
        self._labels: dict[str, str] | None = None

    def show(self, labels: Mapping[str, str], value: float) -> None:
        """See Info."""
        if labels == self._labels:
            self._metric.set(value)
            return
        family = pb.MetricFamily(name=self._name, description=self._description, kind=pb.MetricFamily.GAUGE)
        metric = family.Metric(labels=dict(labels))
        metric.set(value)
        self._metric, self._family, self._labels = metric, family, dict(labels)  # the old ones go, the metric first


class TritonRegistry:
    """Makes metrics of the server. A family lives as long as the registry, and its metrics with it."""

    def __init__(self) -> None:
        """No family yet."""
        self._families: dict[str, Any] = {}

    def counter(self, name: str, description: str, labels: Mapping[str, str]) -> Counter:
        """See MetricRegistry."""
        metric: Counter = self._family(name, description, pb.MetricFamily.COUNTER).Metric(labels=dict(labels))
        return metric

    def gauge(self, name: str, description: str, labels: Mapping[str, str]) -> Gauge:
        """See MetricRegistry."""
        metric: Gauge = self._family(name, description, pb.MetricFamily.GAUGE).Metric(labels=dict(labels))
        return metric

    def info(self, name: str, description: str) -> Info:
        """See MetricRegistry."""
        return TritonInfo(name, description)

    def histogram(self, name: str, description: str, labels: Mapping[str, str], buckets: Sequence[float]) -> Histogram:
        """See MetricRegistry."""
        family = self._family(name, description, pb.MetricFamily.HISTOGRAM)
        metric: Histogram = family.Metric(labels=dict(labels), buckets=list(buckets))
        return metric

    def _family(self, name: str, description: str, kind: Any) -> Any:
        if name not in self._families:
            self._families[name] = pb.MetricFamily(name=name, description=description, kind=kind)
        return self._families[name]
