"""A Grafana dashboard in a ConfigMap, where Grafana's sidecar finds it by its label."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from trierarch.kserve.objects.resource import MODEL, Resource, resource
from trierarch.kserve.objects.signals import selector
from trierarch.kserve.spec import DeploySpec

WIDTH: Final = 8
HEIGHT: Final = 7
COLUMNS: Final = 24 // WIDTH
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph."""

    title: str
    unit: str
    """As Grafana names it."""
    queries: dict[str, str]
    """Legend -> PromQL."""


def dashboard(spec: DeploySpec) -> Resource:
    """The ConfigMap."""
    text = json.dumps(dashboard_document(spec), indent=1, sort_keys=True)
    return resource(
        "v1",
        "ConfigMap",
        f"{spec.name}-dashboard",
        spec,
        {"data": {f"trierarch-{spec.name}.json": text + "\n"}},
        labels={"grafana_dashboard": "1"},
    )


def dashboard_document(spec: DeploySpec) -> dict[str, Any]:
    """What Grafana reads."""
    return {
        "title": f"Trierarch: {spec.namespace}/{spec.name}",
        "uid": f"trierarch-{spec.name}"[:40],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": [_panel(index, panel) for index, panel in enumerate(panels(spec))],
    }


def panels(spec: DeploySpec) -> tuple[Panel, ...]:
    """Left to right, row by row: load, memory, latency; then guessing and adapters; then what it costs."""

    def gauge(name: str, **labels: str) -> str:
        return f"sum({name}{selector(spec, **labels)})"

    def rate(name: str, **labels: str) -> str:
        return f"sum(rate({name}{selector(spec, **labels)}[5m]))"

    def quantile(name: str, share: float) -> str:
        return f"histogram_quantile({share}, sum by (le) (rate({name}_bucket{selector(spec)}[5m])))"

    requests, blocks = "nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"
    accepted = rate("trierarch_accepted_draft_tokens_total")
    # A replica that is gone has no sample, and no replica no series.
    replicas = f"(count({requests}{selector(spec, request_type='max')}) or vector(0))"
    return (
        Panel(
            "Requests",
            "short",
            {kind: gauge(requests, request_type=kind) for kind in ("waiting", "scheduled", "context")},
        ),
        Panel("KV blocks", "percentunit", {"in use": f"avg({blocks}{selector(spec, kv_cache_block_type='fraction')})"}),
        Panel("Replicas that serve", "short", {"replicas": f"count({requests}{selector(spec, request_type='max')})"}),
        Panel(
            "Time to first token",
            "s",
            {name: quantile("trierarch_time_to_first_token_seconds", share) for name, share in QUANTILES.items()},
        ),
        Panel(
            "Between tokens",
            "s",
            {name: quantile("trierarch_inter_token_latency_seconds", share) for name, share in QUANTILES.items()},
        ),
        Panel(
            "In the queue",
            "s",
            {name: quantile("trierarch_queue_time_seconds", share) for name, share in QUANTILES.items()},
        ),
        Panel(
            "Tokens a second",
            "short",
            {"prompt": rate("nv_llm_input_token_len_sum"), "output": rate("nv_llm_output_token_len_sum")},
        ),
        Panel(
            "Requests a second",
            "reqps",
            {
                "answered": rate("nv_inference_request_success", model=MODEL),
                "failed": rate("nv_inference_request_failure", model=MODEL),
            },
        ),
        Panel("Guesses accepted", "percentunit", {"accepted": f"{accepted} / {rate('trierarch_draft_tokens_total')}"}),
        Panel(
            "Adapters",
            "short",
            {status: gauge("trierarch_adapters", status=status) for status in ("registered", "loaded", "active")}
            | {"waited for": gauge("trierarch_adapters_waiting")},
        ),
        Panel(
            "Replica-seconds a day",
            "s",
            {
                "used": f"sum_over_time({replicas}[1d:1m]) * 60",
                "the most there were, always on": f"max_over_time({replicas}[1d:1m]) * 86400",
            },
        ),
        Panel("Wakes from zero a day", "short", {"wakes": f"changes(({replicas} > bool 0)[1d:1m]) / 2"}),
    )


QUANTILES: Final = {"median": 0.5, "95 %": 0.95, "99 %": 0.99}


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
