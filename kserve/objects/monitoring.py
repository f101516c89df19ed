"""PodMonitor and PrometheusRule: what is scraped, and what somebody should be told of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trierarch.kserve.cold_start import ColdStartBudget
from trierarch.kserve.objects.container import GATEWAY_PORT
from trierarch.kserve.objects.resource import MODEL, Resource, pod_labels, resource
from trierarch.kserve.objects.signals import SERVICE_LABEL, selector
from trierarch.kserve.spec import DeploySpec, Profile

KNATIVE_PORT = "user-port"
"""What Knative renames the one port to."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alerting rule."""

    name: str
    expression: str
    minutes: int
    """It must hold for so long."""
    severity: str
    summary: str


def pod_monitor(spec: DeploySpec) -> Resource:
    """The gateway's page of every pod, which has Triton's metrics as well."""
    endpoint = {
        "port": KNATIVE_PORT if spec.profile is Profile.KNATIVE else GATEWAY_PORT,
        "path": "/metrics",
        "interval": f"{spec.monitoring.interval}s",
        "relabelings": [{"action": "replace", "targetLabel": SERVICE_LABEL, "replacement": spec.name}],
    }
    body = {"spec": {"selector": {"matchLabels": pod_labels(spec)}, "podMetricsEndpoints": [endpoint]}}
    return resource("monitoring.coreos.com/v1", "PodMonitor", spec.name, spec, body, labels=spec.monitoring.labels)


def prometheus_rule(spec: DeploySpec, budget: ColdStartBudget) -> Resource:
    """The alerts."""
    rules = [_rule(spec, alert) for alert in alerts(spec, budget)]
    body = {"spec": {"groups": [{"name": f"trierarch-{spec.name}", "rules": rules}]}}
    return resource("monitoring.coreos.com/v1", "PrometheusRule", spec.name, spec, body, labels=spec.monitoring.labels)


def alerts(spec: DeploySpec, budget: ColdStartBudget) -> tuple[Alert, ...]:
    """What goes wrong, and from where on."""
    waiting = f"nv_trt_llm_request_metrics{selector(spec, request_type='waiting')}"
    blocks = f"nv_trt_llm_kv_cache_block_metrics{selector(spec, kv_cache_block_type='fraction')}"
    failed = f"nv_inference_request_failure{selector(spec, model=MODEL)}"
    answered = f"nv_inference_request_success{selector(spec, model=MODEL)}"
    pods = f'namespace="{spec.namespace}",pod=~"{spec.name}-.*"'
    found = [
        Alert(
            "QueueGrows",
            f"avg({waiting}) > {2 * spec.scale.queue_target}",
            5,
            "warning",
            "Twice the waiting requests that replicas are added for: is max_replicas reached, or no GPU free?",
        ),
        Alert(
            "KvCacheFull",
            f"max({blocks}) > 0.95",
            10,
            "warning",
            "Sequences are preempted and computed again: add replicas, or build with more KV cache or an int8 one.",
        ),
        Alert(
            "RequestsFail",
            f"sum(rate({failed}[5m])) / (sum(rate({failed}[5m])) + sum(rate({answered}[5m]))) > 0.05",
            5,
            "critical",
            "More than one request of twenty fails: read the log of the container with the engine.",
        ),
        Alert(
            "ColdStartSlow",
            f"(time() - max by (pod) (kube_pod_created{{{pods}}}) > {budget.deadline}) "
            f'and on (pod) (max by (pod) (kube_pod_status_ready{{{pods},condition="true"}}) == 0)',
            1,
            "warning",
            f"A pod is not ready after {budget.deadline} s, which deadlines were set to: measure its phases again.",
        ),
        Alert(
            "AdaptersFail",
            f"increase(trierarch_adapter_load_failures_total{selector(spec)}[10m]) > 0",
            0,
            "warning",
            "An adapter could not be loaded: trierarch adapters check says why.",
        ),
    ]
    objective = spec.cold_start.ttft_objective
    if objective is not None:
        series = f"trierarch_time_to_first_token_seconds_bucket{selector(spec)}"
        found.append(
            Alert(
                "FirstTokenSlow",
                f"histogram_quantile(0.95, sum by (le) (rate({series}[5m]))) > {objective:g}",
                10,
                "warning",
                f"One request of twenty waits longer than {objective:g} s for its first token.",
            )
        )
    return tuple(found)


def _rule(spec: DeploySpec, alert: Alert) -> dict[str, Any]:
    return {
        "alert": f"Trierarch{alert.name}",
        "expr": alert.expression,
        "for": f"{alert.minutes}m",
        "labels": {"severity": alert.severity, "service": spec.name},
        "annotations": {"summary": alert.summary},
    }
