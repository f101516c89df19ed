"""A Grafana dashboard: panels in rows of three, over a Prometheus that is chosen in Grafana."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from trierarch.kserve.series import Series

WIDTH: Final = 8
HEIGHT: Final = 7
COLUMNS: Final = 24 // WIDTH
MAX_UID: Final = 40
_UNFIT: Final = re.compile(r"[^a-zA-Z0-9_-]")
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
QUANTILES: Final = {"median": 0.5, "95 %": 0.95, "99 %": 0.99}


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph."""

    title: str
    unit: str
    """As Grafana names it."""
    queries: dict[str, str]
    """Legend -> PromQL."""


def quantiles(title: str, series: Series, name: str) -> Panel:
    """Of a histogram of seconds."""
    return Panel(title, "s", {legend: series.quantile(name, share) for legend, share in QUANTILES.items()})


def document(title: str, uid: str, panels: Iterable[Panel]) -> dict[str, Any]:
    """What Grafana reads."""
    return {
        "title": title,
        "uid": _UNFIT.sub("-", uid)[:MAX_UID],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": [_panel(index, panel) for index, panel in enumerate(panels)],
    }


def _panel(index: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": DATASOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": index % COLUMNS * WIDTH, "y": index // COLUMNS * HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "legendFormat": legend, "expr": query}
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }
