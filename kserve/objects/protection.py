"""NetworkPolicy and PodDisruptionBudget: who may connect, and how many pods may go at once on purpose."""

from __future__ import annotations

from typing import Any, Final

from trierarch.kserve.objects.autoscaling import KEDA_NAMESPACE
from trierarch.kserve.objects.container import ports_of
from trierarch.kserve.objects.resource import Resource, pod_labels, resource
from trierarch.kserve.spec import DeploySpec, Profile

NAMESPACES: Final = {
    Profile.KNATIVE: ("knative-serving", "kourier-system", "istio-system"),
    Profile.KEDA: ("envoy-gateway-system", "istio-system"),
    Profile.EXTERNAL: (KEDA_NAMESPACE,),
    Profile.LLM: ("envoy-gateway-system", "istio-system"),
}
"""Where what stands in front of pods usually runs; others by `access.from_namespaces`."""
MONITORING: Final = "monitoring"
KNATIVE_PORTS: Final = (8012, 8013, 9090, 9091)
"""Of the queue-proxy, which requests come through: HTTP, h2c and two for metrics."""


def network_policy(spec: DeploySpec) -> Resource:
    """Pods take connections from their own namespace and from what stands in front of them, and on their ports alone.

    What they connect to is not limited: an engine may be fetched from anywhere.
    """
    namespaces = sorted({*NAMESPACES[spec.profile], MONITORING, *spec.access.from_namespaces})
    ports = ports_of(spec.profile)
    numbers = [ports.gateway, ports.http, ports.grpc, ports.metrics]
    if spec.profile is Profile.KNATIVE:
        numbers += KNATIVE_PORTS
    peers: list[dict[str, Any]] = [{"podSelector": {}}]
    peers += [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}} for namespace in namespaces
    ]
    body = {
        "spec": {
            "podSelector": {"matchLabels": pod_labels(spec)},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": peers, "ports": [{"protocol": "TCP", "port": number} for number in sorted(numbers)]}],
        }
    }
    return resource("networking.k8s.io/v1", "NetworkPolicy", spec.name, spec, body)


def disruption_budget(spec: DeploySpec) -> Resource:
    """One pod at a time: a node can always be drained, and a pod that is not ready holds nobody up."""
    body = {
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": pod_labels(spec)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        }
    }
    return resource("policy/v1", "PodDisruptionBudget", spec.name, spec, body)
