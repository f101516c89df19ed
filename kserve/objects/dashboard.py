"""A Grafana dashboard in a ConfigMap, where Grafana's sidecar finds it by its label."""

from __future__ import annotations

import json
from typing import Any

from trierarch.kserve.grafana import Panel, document
from trierarch.kserve.objects.held_requests import held_panels
from trierarch.kserve.objects.resource import Resource, resource
from trierarch.kserve.objects.signals import series_of
from trierarch.kserve.panels import engine_panels
from trierarch.kserve.spec import DeploySpec


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
    """What Grafana reads: what engines do, what replicas cost, and what their absence does."""
    panels = (*engine_panels(series_of(spec)), *_cost_panels(spec), *held_panels(spec))
    return document(f"Trierarch: {spec.namespace}/{spec.name}", f"trierarch-{spec.name}", panels)


def _cost_panels(spec: DeploySpec) -> tuple[Panel, ...]:
    count = f"count(nv_trt_llm_request_metrics{series_of(spec).matching(request_type='max')})"
    # A replica that is gone has no sample, and no replica no series.
    replicas = f"({count} or vector(0))"
    return (
        Panel("Replicas that serve", "short", {"replicas": count}),
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
