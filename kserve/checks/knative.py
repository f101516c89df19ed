"""What Knative refuses of a pod, though KServe takes it: its allowed fields are fewer (Knative 1.23, fieldmask.go and k8s_validation.go)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from trierarch.kserve.checks.finding import Finding, Severity, subject_of
from trierarch.kserve.checks.runtime_selection import merged_pod
from trierarch.kserve.cold_start import KNATIVE_MAX_TIMEOUT
from trierarch.kserve.objects.resource import Resource

_POD_FIELDS: Final = (
    "activeDeadlineSeconds",
    "hostname",
    "nodeName",
    "overhead",
    "priority",
    "readinessGates",
    "restartPolicy",
    "subdomain",
    "terminationGracePeriodSeconds",
)
_CONTAINER_FIELDS: Final = ("lifecycle", "stdin", "stdinOnce", "tty", "volumeDevices")
_PORT_NAMES: Final = ("", "http1", "h2c")
_PROBES: Final = ("livenessProbe", "readinessProbe", "startupProbe")


def knative_findings(service: Resource, objects: Sequence[Resource]) -> Iterator[Finding]:
    """What would be refused, and what is silently moved."""
    subject = subject_of(service)
    pod = merged_pod(service, objects)
    for field in _POD_FIELDS:
        if field in pod:
            yield Finding(subject, f"spec.predictor.{field}", "Knative refuses it")
    containers = pod.get("containers", [])
    serving = [container for container in containers if container.get("ports")]
    if len(serving) > 1 or any(len(container["ports"]) > 1 for container in serving):
        yield Finding(subject, "spec.predictor", "Knative takes one port in a pod: HTTP, or gRPC named h2c")
    for container in containers:
        is_serving = container in serving or len(containers) == 1
        yield from _container(subject, container, is_serving)
    timeout = service.get("spec", {}).get("predictor", {}).get("timeout", 0)
    if timeout > KNATIVE_MAX_TIMEOUT:
        message = f"is {timeout}: Knative refuses more than its max-revision-timeout-seconds, {KNATIVE_MAX_TIMEOUT} as shipped"
        yield Finding(subject, "spec.predictor.timeout", message, Severity.WARNING)


def _container(subject: str, container: dict[str, Any], is_serving: bool) -> Iterator[Finding]:
    name = f"container {container.get('name')}"
    for field in _CONTAINER_FIELDS:
        if field in container:
            yield Finding(subject, f"{name} {field}", "Knative refuses it")
    for port in container.get("ports", []):
        if port.get("name", "") not in _PORT_NAMES:
            yield Finding(subject, f"{name} ports", f"{port['name']!r} is none of Knative's port names, http1 and h2c")
    ports = [port.get("containerPort") for port in container.get("ports", [])]
    for probe in _PROBES:
        if probe not in container:
            continue
        if not is_serving:
            yield Finding(
                subject, f"{name} {probe}", "only the container with the port is probed, unless Knative is told"
            )
        handler = container[probe].get("httpGet") or container[probe].get("tcpSocket") or {}
        # A startup probe goes where it says; the others Knative sends to the one port.
        if probe != "startupProbe" and ports and handler.get("port", ports[0]) not in (*ports, 0):
            message = f"goes to the pod's one port, {ports[0]}, whatever it says"
            yield Finding(subject, f"{name} {probe}", message, Severity.WARNING)
