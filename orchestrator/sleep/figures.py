"""Figures: what sleeping saved and what it cost, of one server and as a page for Prometheus."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from trierarch.orchestrator.sleep.lifecycle import Lifecycle, Phase

BUCKETS: Final = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds."""
NUM_REMEMBERED: Final = 1000
"""Waits that the median is taken of."""


def _nothing(seconds: float) -> None:
    """Nobody shows it."""


class Figures:
    """Counts of one server. It is told what happens; whoever reads may do so at any time."""

    def __init__(self, lifecycle: Lifecycle, clock: Callable[[], float]) -> None:
        """Count from now on; `clock` gives seconds."""
        self.lifecycle = lifecycle
        self.num_wakes = self.num_failures = self.num_deaths = self.num_held = self.num_refused = self.num_retries = 0
        self.observe_wake: Callable[[float], object] = _nothing
        self.observe_hold: Callable[[float], object] = _nothing
        """Told of each, in seconds; a Page that shows them listens."""
        self._recent_holds: deque[float] = deque(maxlen=NUM_REMEMBERED)
        self._clock = clock
        self._begun = clock()
        self._running_since: float | None = None
        self._ran = 0.0

    def starts(self) -> None:
        """The server takes memory from now on."""
        self._running_since = self._clock()

    def ended(self) -> None:
        """It takes none any more."""
        self._ran, self._running_since = self.replica_seconds, None

    def woke(self, seconds: float) -> None:
        """It is ready, so long after it was started."""
        self.num_wakes += 1
        self.observe_wake(seconds)

    def failed(self) -> None:
        """It did not start."""
        self.num_failures += 1

    def died(self) -> None:
        """It ended without having been told to."""
        self.num_deaths += 1

    def held(self, seconds: float) -> None:
        """A request had waited so long when it was admitted, refused or given up."""
        self.num_held += 1
        self.observe_hold(seconds)
        self._recent_holds.append(seconds)

    def refused(self) -> None:
        """A request was told that there is no server for it."""
        self.num_refused += 1

    def retried(self) -> None:
        """A request was sent again to the next server, since the one that had it died."""
        self.num_retries += 1

    @property
    def replica_seconds(self) -> float:
        """That the server has run."""
        return self._ran + (0.0 if self._running_since is None else self._clock() - self._running_since)

    @property
    def always_on_seconds(self) -> float:
        """That one which never sleeps would have run."""
        return self._clock() - self._begun

    def line(self) -> str:
        """It all, for people, on one line."""
        share = self.replica_seconds / self.always_on_seconds if self.always_on_seconds else 0.0
        words = [
            str(self.lifecycle.phase),
            f"ran {self.replica_seconds:.0f} of {self.always_on_seconds:.0f} s ({share:.0%} of always on)",
            f"{self.num_wakes} wakes",
        ]
        if self.lifecycle.num_leases:
            words.append(f"{self.lifecycle.num_leases} open requests")
        if self.lifecycle.num_held:
            words.append(f"{self.lifecycle.num_held} waiting")
        if self._recent_holds:
            words.append(
                f"{self.num_held} requests waited, {statistics.median(self._recent_holds):.1f} s in the median"
            )
        for count, what in ((self.num_refused, "refused"), (self.num_deaths, "deaths"), (self.num_retries, "retried")):
            if count:
                words.append(f"{count} {what}")
        return ", ".join(words)


class Page:
    """The figures of several servers in Prometheus's text format. A collector of prometheus_client's."""

    def __init__(self) -> None:
        """An empty page."""
        self._figures: dict[str, Figures] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._wakes = self._histogram("wake_seconds", "What waking took")
        self._holds = self._histogram("held_seconds", "How long requests waited that did not find the server awake")
        self._registry.register(self)

    def add(self, engine: str, figures: Figures) -> None:
        """Show them with this label."""
        self._figures[engine] = figures
        figures.observe_wake = self._wakes.labels(engine).observe
        figures.observe_hold = self._holds.labels(engine).observe

    def render(self) -> bytes:
        """The page as it is now."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """What prometheus_client asks a collector for."""
        yield from self._counters()
        yield self._gauge("leases", "Requests that keep the server awake", lambda one: one.lifecycle.num_leases)
        yield self._gauge("held_requests", "Requests that wait for the server", lambda one: one.lifecycle.num_held)
        phases = GaugeMetricFamily(
            "trierarch_sleep_phase", "1 for what the server is doing", labels=("engine", "phase")
        )
        for engine, figures in self._figures.items():
            for phase in Phase:
                phases.add_metric((engine, phase), figures.lifecycle.phase is phase)
        yield phases

    def _counters(self) -> Iterator[Metric]:
        columns: tuple[tuple[str, str, Callable[[Figures], float]], ...] = (
            ("wakes", "Starts that succeeded", lambda one: one.num_wakes),
            ("wake_failures", "Starts that failed", lambda one: one.num_failures),
            ("deaths", "Times that the server, or a process of its own, died", lambda one: one.num_deaths),
            ("held", "Requests that did not find the server awake and waited", lambda one: one.num_held),
            ("refused", "Requests that were refused for want of a server", lambda one: one.num_refused),
            ("retries", "Requests sent again because the server had died", lambda one: one.num_retries),
            ("replica_seconds", "Seconds that the server ran", lambda one: one.replica_seconds),
            (
                "always_on_seconds",
                "Seconds that one which never sleeps would have run",
                lambda one: one.always_on_seconds,
            ),
        )
        for name, what, value in columns:
            family = CounterMetricFamily(f"trierarch_sleep_{name}", what, labels=("engine",))
            for engine, figures in self._figures.items():
                family.add_metric((engine,), value(figures))
            yield family

    def _gauge(self, name: str, what: str, value: Callable[[Figures], float]) -> Metric:
        family = GaugeMetricFamily(f"trierarch_sleep_{name}", what, labels=("engine",))
        for engine, figures in self._figures.items():
            family.add_metric((engine,), value(figures))
        return family

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(f"trierarch_sleep_{name}", what, ("engine",), buckets=BUCKETS, registry=self._registry)
