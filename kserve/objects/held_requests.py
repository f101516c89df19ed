"""Requests that wait for a replica, as whoever holds them counts them, and how long they wait.

Names and labels, which are other projects': KEDA's HTTP add-on from 0.14 on (its reference of metrics), Knative Serving from 1.22
on (pkg/activator/handler/metrics.go) and llm-d's router from 0.9 on. Prometheus must read their pods, which are not of the service.
"""

from __future__ import annotations

from trierarch.kserve.grafana import Panel, quantiles
from trierarch.kserve.objects.resource import pool_name, predictor_name
from trierarch.kserve.objects.signals import series_of
from trierarch.kserve.series import Series
from trierarch.kserve.spec import DeploySpec, Profile


def held_panels(spec: DeploySpec) -> tuple[Panel, ...]:
    """None where nobody holds requests."""
    match spec.profile:
        case Profile.KNATIVE:
            return _by_the_activator(spec)
        case Profile.EXTERNAL:
            return _by_the_interceptor(spec)
        case Profile.LLM:
            return _by_the_picker(spec)
        case Profile.KEDA:
            return ()


def _by_the_activator(spec: DeploySpec) -> tuple[Panel, ...]:
    """Of each revision; it counts no waits."""
    of_revisions = f'{{k8s_namespace_name="{spec.namespace}",kn_revision_name=~"{predictor_name(spec)}-[0-9]+"}}'
    counts = {
        "by the activator": f"sum(kn_revision_request_queued{of_revisions})",
        "under way through it": f"sum(kn_revision_request_active{of_revisions})",
    }
    return (Panel("Requests held", "short", counts),)


def _by_the_interceptor(spec: DeploySpec) -> tuple[Panel, ...]:
    """It counts what is open at all; what no replica has is held."""
    route = Series({"route_namespace": spec.namespace, "route_name": spec.name})
    is_open = route.gauge("interceptor_request_concurrency")
    in_replicas = f"({series_of(spec).gauge('trierarch_gateway_open_requests')} or vector(0))"
    held = f"clamp_min({is_open} - {in_replicas}, 0)"
    # Little's law: how many there are on average is how many come a second times how long each stays.
    mean = f"avg_over_time(({held})[5m:15s]) / {route.rate('interceptor_request_count_total')}"
    return (
        Panel("Requests held", "short", {"by the interceptor": held, "open in replicas": in_replicas}),
        Panel("Held, of all requests", "s", {"mean": mean}),
    )


def _by_the_picker(spec: DeploySpec) -> tuple[Panel, ...]:
    pool = Series({"namespace": spec.namespace, "inference_pool": pool_name(spec)})
    return (
        Panel("Requests held", "short", {"by the endpoint picker": pool.gauge("llm_d_epp_flow_control_queue_size")}),
        quantiles("Held, of all requests", pool, "llm_d_epp_flow_control_request_queue_duration_seconds"),
    )
