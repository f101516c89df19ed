"""What clusters accept and then do not do: each rule is a report that somebody made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from trierarch.kserve.checks.finding import Finding, Severity, subject_of
from trierarch.kserve.checks.service_mode import autoscaler_of, mode_of
from trierarch.kserve.cold_start import STANDARD_PROGRESS_DEADLINE
from trierarch.kserve.objects.resource import Resource
from trierarch.kserve.plain_secrets import secret_in


def service_traps(service: Resource) -> Iterator[Finding]:
    """Of an InferenceService: fields that are ignored or clamped without a word (kserve#3514, #6001, #4007)."""
    predictor = service.get("spec", {}).get("predictor")
    if not isinstance(predictor, dict):
        return
    subject, mode, autoscaler = subject_of(service), mode_of(service), autoscaler_of(service)
    least = predictor.get("minReplicas")

    def trap(path: str, message: str) -> Finding:
        return Finding(subject, f"spec.predictor.{path}", message, Severity.WARNING)

    if not mode:
        yield trap("", "no deploymentMode is said, and the cluster's default is taken: Knative, as shipped")
    if mode == "Standard" and autoscaler == "hpa" and least == 0:
        yield trap(
            "minReplicas", "is 0, and KServe makes it 1 for an HPA: use Knative mode, or autoscalerClass external"
        )
    if mode == "Standard" and autoscaler == "keda" and least == 0:
        yield trap("minReplicas", "is 0, and nothing holds requests while nothing runs: use autoscalerClass external")
    if mode == "Knative" and predictor.get("autoScaling"):
        yield trap("autoScaling", "is ignored in Knative mode: say scaleMetric and scaleTarget")
    behavior = (predictor.get("autoScaling") or {}).get("behavior") or {}
    for direction, rules in behavior.items():
        if mode == "Standard" and autoscaler == "keda" and set(rules) - {"stabilizationWindowSeconds"}:
            yield trap(
                f"autoScaling.behavior.{direction}", "of it KServe hands stabilizationWindowSeconds on, and no more"
            )
    if mode == "Standard" and "terminationGracePeriodSeconds" not in predictor:
        yield trap("terminationGracePeriodSeconds", "is 30 where it is not said, and longer answers are cut")
    if mode == "Standard" and "timeout" not in predictor:
        yield trap("timeout", "is 60 where it is not said, and longer answers are cut")


def startup_traps(found: Resource) -> Iterator[Finding]:
    """Of any pod: a start that its deadline does not allow."""
    deadline = found.get("spec", {}).get("progressDeadlineSeconds", STANDARD_PROGRESS_DEADLINE)
    for path, container in _containers("", found):
        probe = container.get("startupProbe")
        if isinstance(probe, dict) and found.get("kind") == "Deployment":
            seconds = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
            if seconds > deadline:
                message = f"allows {seconds} s, and the Deployment's deadline is {deadline}"
                yield Finding(subject_of(found), f"{path}.startupProbe", message, Severity.WARNING)


def secret_findings(found: Resource) -> Iterator[Finding]:
    """Secrets in plain text in variables and URIs."""
    if found.get("kind") == "Secret":
        return
    for path, container in _containers("", found):
        for variable in container.get("env") or []:
            if not isinstance(variable, dict) or not isinstance(variable.get("value"), str):
                continue
            reason = secret_in(str(variable.get("name")), variable["value"])
            if reason:
                yield Finding(
                    subject_of(found), f"{path}.env.{variable['name']}", f"{reason}: use valueFrom.secretKeyRef"
                )
    for path, text in _texts("", found.get("spec")):
        if "://" in text and (reason := secret_in("", text)):
            yield Finding(subject_of(found), f"spec{path}", f"{reason}: use a service account or a Secret")


def _containers(path: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, object) of everything that looks like a container."""
    if isinstance(value, dict):
        if isinstance(value.get("env"), list) or "startupProbe" in value:
            yield path, value
        for key, item in value.items():
            yield from _containers(f"{path}.{key}".lstrip("."), item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from _containers(f"{path}[{index}]", item)


def _texts(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "env":
                yield from _texts(f"{path}.{key}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(f"{path}[{index}]", item)
