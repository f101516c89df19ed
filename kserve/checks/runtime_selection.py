"""Whether an InferenceService finds its runtime among the objects beside it (KServe 0.20, predictor_model.go)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from trierarch.kserve.checks.finding import Finding, Severity, subject_of
from trierarch.kserve.checks.webhook import FRAMEWORKS
from trierarch.kserve.objects.resource import Resource

_V2_FORMATS: Final = ("triton", "vLLM")
"""Formats whose protocol is v2 where none is said; every other's is v1."""


def runtime_findings(service: Resource, objects: Sequence[Resource]) -> Iterator[Finding]:
    """Why no runtime would be found, or the wrong one."""
    predictor = service.get("spec", {}).get("predictor")
    if not isinstance(predictor, dict):
        return
    model = predictor.get("model")
    if not isinstance(model, dict):
        return
    subject, path = subject_of(service), "spec.predictor.model"
    format_name = str((model.get("modelFormat") or {}).get("name", ""))
    if "protocolVersion" not in model and format_name not in _V2_FORMATS and format_name:
        protocol = "v1"
    else:
        protocol = str(model.get("protocolVersion", "v2"))
    wanted = model.get("runtime")
    namespace = service["metadata"].get("namespace", "default")
    runtimes = [found for found in objects if _is_visible(found, namespace)]
    if wanted is None:
        if not any(_reason(found, model, protocol, predictor, is_named=False) is None for found in runtimes):
            yield Finding(
                subject,
                path,
                f"names no runtime, and none here is chosen for {format_name!r} by itself",
                Severity.WARNING,
            )
        return
    named = [found for found in runtimes if found["metadata"]["name"] == wanted]
    if not named:
        message = f"names the runtime {wanted!r}, which is not among these objects: it must be in the cluster"
        yield Finding(subject, f"{path}.runtime", message, Severity.WARNING)
        return
    # One of the namespace wins over one of the cluster.
    chosen = min(named, key=lambda found: found["kind"] != "ServingRuntime")
    reason = _reason(chosen, model, protocol, predictor, is_named=True)
    if reason is not None:
        yield Finding(subject, f"{path}.runtime", f"{wanted!r} {reason}")


def _reason(
    runtime: Resource, model: dict[str, Any], protocol: str, predictor: dict[str, Any], *, is_named: bool
) -> str | None:
    """Why `runtime` does not serve `model`; None: it does."""
    spec = runtime["spec"]
    if spec.get("disabled"):
        return "is disabled"
    if spec.get("multiModel"):
        return "is for many models at once"
    wanted = model.get("modelFormat") or {}
    formats = [found for found in spec.get("supportedModelFormats", []) if found.get("name") == wanted.get("name")]
    if wanted.get("version"):
        formats = [found for found in formats if found.get("version") == wanted["version"]]
    if not is_named:
        formats = [found for found in formats if found.get("autoSelect")]
    if not formats:
        return f"does not support the format {wanted.get('name')!r}"
    # A runtime that names no protocol speaks v1.
    if protocol not in (spec.get("protocolVersions") or ["v1"]):
        return f"does not speak the protocol {protocol}: say model.protocolVersion"
    if (spec.get("workerSpec") is None) != (predictor.get("workerSpec") is None):
        return "and the service do not agree on workerSpec"
    return None


def _is_visible(found: Resource, namespace: str) -> bool:
    if found.get("kind") == "ClusterServingRuntime":
        return True
    return found.get("kind") == "ServingRuntime" and found["metadata"].get("namespace", "default") == namespace


def merged_pod(service: Resource, objects: Sequence[Resource]) -> dict[str, Any]:
    """The pod that KServe makes of a runtime and a predictor, as far as the rules here look at it."""
    predictor = service.get("spec", {}).get("predictor") or {}
    model = predictor.get("model") or {}
    namespace = service["metadata"].get("namespace", "default")
    runtimes = [
        found
        for found in objects
        if _is_visible(found, namespace) and found["metadata"]["name"] == model.get("runtime")
    ]
    spec = runtimes[0]["spec"] if runtimes else {}
    pod = {key: value for key, value in spec.items() if key in ("containers", "volumes", "nodeSelector", "tolerations")}
    own = set(predictor) - {*FRAMEWORKS, "minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "storageUris"}
    return pod | {key: predictor[key] for key in own - _EXTENSIONS}


_EXTENSIONS: Final = frozenset(
    {
        "annotations",
        "autoScaling",
        "batcher",
        "canaryTrafficPercent",
        "containerConcurrency",
        "deploymentStrategy",
        "labels",
        "logger",
        "name",
        "scaleMetricType",
        "storageContainerName",
        "timeout",
        "workerSpec",
    }
)
"""Fields of a predictor that are KServe's own, and none of the pod's."""
