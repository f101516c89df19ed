"""The Grafana dashboard of what `trierarch serve` runs: the engine, and what its sleep saves and costs."""

from __future__ import annotations

from typing import Any

from trierarch.kserve.grafana import Panel, document, quantiles
from trierarch.kserve.panels import engine_panels
from trierarch.kserve.series import Series


def serve_dashboard(job: str) -> dict[str, Any]:
    """What Grafana reads, of the series that Prometheus scrapes as `job`."""
    series = Series({"job": job})
    return document(f"Trierarch: {job}", f"trierarch-{job}", (*engine_panels(series), *sleep_panels(series)))


def sleep_panels(series: Series) -> tuple[Panel, ...]:
    """Empty without --idle-timeout."""

    def sleep(name: str) -> str:
        return f"trierarch_sleep_{name}"

    return (
        Panel(
            "Replica-seconds a day",
            "s",
            {
                "used": series.a_day(sleep("replica_seconds_total")),
                "always on": series.a_day(sleep("always_on_seconds_total")),
            },
        ),
        Panel(
            "Wakes a day",
            "short",
            {
                "wakes": series.a_day(sleep("wakes_total")),
                "failed": series.a_day(sleep("wake_failures_total")),
                "deaths": series.a_day(sleep("deaths_total")),
            },
        ),
        quantiles("A wake", series, sleep("wake_seconds")),
        Panel(
            "Requests held",
            "short",
            {"held": series.gauge(sleep("held_requests")), "open": series.gauge(sleep("leases"))},
        ),
        quantiles("Wait of those that were held", series, sleep("held_seconds")),
        Panel(
            "Of requests, a second",
            "reqps",
            {name: series.rate(sleep(f"{name}_total")) for name in ("held", "refused", "retries")},
        ),
    )
