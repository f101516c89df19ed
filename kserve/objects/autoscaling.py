"""ScaledObject, InterceptorRoute and their route: to zero and back in KServe's Standard mode, requests waiting meanwhile.

KServe's own ScaledObject has one trigger type and no activation threshold, and nothing that lives at zero. This one is woken by
the interceptor of KEDA's HTTP add-on, which holds the request until a replica is ready.
"""

from __future__ import annotations

from typing import Any, Final

from trierarch.builder.manifest import EngineManifest
from trierarch.kserve.cold_start import ColdStartBudget
from trierarch.kserve.objects.inference_service import concurrency_target
from trierarch.kserve.objects.resource import Resource, predictor_name, resource
from trierarch.kserve.objects.signals import KV_PERCENT, kv_query, waiting_query
from trierarch.kserve.spec import DeploySpec

KEDA_NAMESPACE: Final = "keda"
INTERCEPTOR: Final = "keda-add-ons-http-interceptor-proxy"
INTERCEPTOR_PORT: Final = 8080
SCALER: Final = "keda-add-ons-http-external-scaler.keda:9090"
POLLING: Final = 15


def prometheus_triggers(spec: DeploySpec) -> list[dict[str, Any]]:
    """The queue, and the KV cache as a guard."""

    def trigger(name: str, query: str, threshold: int) -> dict[str, Any]:
        return {
            "type": "prometheus",
            "name": name,
            "metadata": {
                "serverAddress": spec.monitoring.prometheus,
                "query": query,
                "threshold": str(threshold),
                "activationThreshold": "0",
                # At zero there is no series, which is no error.
                "ignoreNullValues": "true",
            },
        }

    return [
        trigger("waiting", waiting_query(spec), spec.scale.queue_target),
        trigger("kv", kv_query(spec), round(spec.scale.kv_target * KV_PERCENT)),
    ]


def scaled_object(spec: DeploySpec, budget: ColdStartBudget) -> Resource:
    """Scales KServe's Deployment, which KServe leaves alone for `autoscalerClass: external`.

    Without a fallback on purpose: where Prometheus cannot be read, KEDA and its HPA leave replicas as they are, and the
    interceptor's count still adds some.
    """
    cooldown = max(spec.scale.cooldown, budget.deadline)
    wake = {
        "type": "external-push",
        "name": "open-requests",
        "metadata": {"scalerAddress": SCALER, "interceptorRoute": spec.name},
    }
    body = {
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": predictor_name(spec)},
            "minReplicaCount": spec.min_replicas,
            "maxReplicaCount": spec.scale.max_replicas,
            "pollingInterval": POLLING,
            "cooldownPeriod": cooldown,
            # A replica that is still starting must not count as idle.
            "initialCooldownPeriod": budget.deadline,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": hpa_behavior(cooldown)}},
            "triggers": [wake, *prometheus_triggers(spec)],
        }
    }
    return resource("keda.sh/v1alpha1", "ScaledObject", spec.name, spec, body)


def hpa_behavior(cooldown: int) -> dict[str, Any]:
    """Up at once, down one replica a minute after a quiet time: a replica that goes takes its KV cache with it."""
    return {
        "scaleUp": {"stabilizationWindowSeconds": 0},
        "scaleDown": {
            "stabilizationWindowSeconds": min(cooldown, 3600),
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
        },
    }


def interceptor_route(spec: DeploySpec, engine: EngineManifest, budget: ColdStartBudget) -> Resource:
    """Requests for the host go through the interceptor, which counts them and holds them while nothing runs."""
    body = {
        "spec": {
            "target": {"service": predictor_name(spec), "port": 80},
            "rules": [{"hosts": [spec.host]}],
            "scalingMetric": {"concurrency": {"targetValue": concurrency_target(spec, engine)}},
            "timeouts": {
                "readiness": f"{budget.deadline}s",
                "responseHeader": f"{spec.streams.longest}s",
                "request": f"{budget.deadline + spec.streams.longest}s",
            },
        }
    }
    return resource("http.keda.sh/v1beta1", "InterceptorRoute", spec.name, spec, body)


def gateway_route(spec: DeploySpec) -> list[Resource]:
    """From a Gateway to the interceptor, and the permission to cross into its namespace. Nothing, where none is named."""
    if spec.access.gateway is None:
        return []
    namespace, name = spec.access.gateway.split("/")
    backend = {"name": INTERCEPTOR, "namespace": KEDA_NAMESPACE, "port": INTERCEPTOR_PORT}
    route = {
        "spec": {
            "parentRefs": [{"name": name, "namespace": namespace}],
            "hostnames": [spec.host],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                    "backendRefs": [backend],
                    # No limit here: the interceptor has them.
                    "timeouts": {"request": "0s", "backendRequest": "0s"},
                }
            ],
        }
    }
    grant = {
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": spec.namespace}],
            "to": [{"group": "", "kind": "Service", "name": INTERCEPTOR}],
        }
    }
    return [
        resource("gateway.networking.k8s.io/v1", "HTTPRoute", spec.name, spec, route),
        resource(
            "gateway.networking.k8s.io/v1beta1",
            "ReferenceGrant",
            f"{spec.namespace}-{spec.name}",
            spec,
            grant,
            namespace=KEDA_NAMESPACE,
        ),
    ]
