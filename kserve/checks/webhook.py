"""What KServe's admission webhook refuses of an InferenceService: no schema says it (KServe 0.20, inference_service_validation.go)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from trierarch.kserve.checks.finding import Finding, subject_of
from trierarch.kserve.checks.scaling import scaling
from trierarch.kserve.checks.service_mode import AUTOSCALER, AUTOSCALERS, MODE, autoscaler_of, components, mode_of
from trierarch.kserve.objects.resource import Resource
from trierarch.kserve.spec import NAME_PATTERN

FRAMEWORKS: Final = (
    "model",
    "triton",
    "huggingface",
    "sklearn",
    "xgboost",
    "tensorflow",
    "pytorch",
    "onnx",
    "pmml",
    "lightgbm",
    "paddle",
)
LOGGER_MODES: Final = ("all", "request", "response")
BLOCKED_VARIABLES: Final = ("PYTHONPATH",)

Rule = Callable[[Resource], Iterator[tuple[str, str]]]
"""An InferenceService -> (path, message) of each thing it breaks."""


def webhook_findings(service: Resource) -> Iterator[Finding]:
    """What would be refused."""
    predictor = service.get("spec", {}).get("predictor")
    if not isinstance(predictor, dict):
        yield Finding(subject_of(service), "spec.predictor", "is missing")
        return
    for rule in RULES:
        for path, message in rule(service):
            yield Finding(subject_of(service), path, message)


def _implementations(predictor: dict[str, Any]) -> list[str]:
    found = [name for name in FRAMEWORKS if predictor.get(name) is not None]
    return found if found or not predictor.get("containers") else ["containers"]


def _name(service: Resource) -> Iterator[tuple[str, str]]:
    if not re.fullmatch(NAME_PATTERN, str(service["metadata"].get("name"))):
        yield "metadata.name", "KServe takes lower-case letters, digits and '-', a letter first"


def _classes(service: Resource) -> Iterator[tuple[str, str]]:
    if autoscaler_of(service) not in AUTOSCALERS:
        yield f"metadata.annotations.{AUTOSCALER}", f"is none of {', '.join(AUTOSCALERS)}"
    if mode_of(service) not in ("", "Standard", "Knative", "ModelMesh"):
        yield f"metadata.annotations.{MODE}", "is none of Standard, Knative, ModelMesh"


def _one_implementation(service: Resource) -> Iterator[tuple[str, str]]:
    for path, predictor in _predictors(service):
        found = _implementations(predictor)
        if len(found) != 1:
            yield (
                path,
                f"must have exactly one of {', '.join(FRAMEWORKS)} or containers, and has {', '.join(found) or 'none'}",
            )
        for name in found:
            if name != "containers" and predictor[name].get("name"):
                yield f"{path}.{name}.name", "a standard predictor's container has no name"


def _variables(service: Resource) -> Iterator[tuple[str, str]]:
    for path, component in components(service):
        containers = [*component.get("containers", []), *component.get("initContainers", [])]
        containers += [component[name] for name in FRAMEWORKS if isinstance(component.get(name), dict)]
        for container in containers:
            for variable in container.get("env", []):
                if variable.get("name") in BLOCKED_VARIABLES:
                    yield path, f"sets {variable['name']}, which KServe forbids"


def _replicas(service: Resource) -> Iterator[tuple[str, str]]:
    for path, component in components(service):
        least, most = component.get("minReplicas"), component.get("maxReplicas", 0)
        if isinstance(least, int) and least < 0:
            yield f"{path}.minReplicas", f"is {least}, below 0"
        if most < 0:
            yield f"{path}.maxReplicas", f"is {most}, below 0"
        if isinstance(least, int) and 0 < most < least:
            yield f"{path}.minReplicas", f"is {least}, above maxReplicas, {most}"
        if component.get("containerConcurrency", 0) < 0:
            yield f"{path}.containerConcurrency", "is below 0"
        if component.get("logger") and component["logger"].get("mode", "all") not in LOGGER_MODES:
            yield f"{path}.logger.mode", f"is none of {', '.join(LOGGER_MODES)}"


def _canaries(service: Resource) -> Iterator[tuple[str, str]]:
    canaries = service["spec"].get("canary") or []
    if not canaries:
        return
    stable = service["spec"]["predictor"]
    if mode_of(service) != "Standard":
        yield "spec.canary", "is of Standard mode; Knative has predictor.canaryTrafficPercent"
    seen = {stable.get("name")}
    for index, canary in enumerate(canaries):
        predictor, path = canary.get("predictor", {}), f"spec.canary[{index}]"
        name = predictor.get("name")
        if not name:
            yield f"{path}.predictor.name", "is missing"
        elif name in seen:
            yield f"{path}.predictor.name", f"{name!r} is taken"
        seen.add(name)
        if not 0 <= canary.get("trafficPercent", 0) <= 100:
            yield f"{path}.trafficPercent", "is not from 0 to 100"
        for field in ("workerSpec", "maxReplicas", "scaleTarget", "scaleMetric", "autoScaling"):
            if predictor.get(field):
                yield f"{path}.predictor.{field}", "a canary has fixed replicas on one node"
        if predictor.get("minReplicas", 0) > stable.get("minReplicas", 1):
            yield f"{path}.predictor.minReplicas", "is more than the stable predictor's"
    if sum(canary.get("trafficPercent", 0) for canary in canaries) > 100:
        yield "spec.canary", "trafficPercent sums up to more than 100"


def _storage(service: Resource) -> Iterator[tuple[str, str]]:
    for path, predictor in _predictors(service):
        several = predictor.get("storageUris")
        single = any((predictor.get(name) or {}).get("storageUri") for name in FRAMEWORKS)
        if several and single:
            yield f"{path}.storageUris", "and storageUri exclude each other"
        yield from _mounts(path, several or [])


def _mounts(path: str, several: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    mounts: dict[bool, list[str]] = {True: [], False: []}
    for index, source in enumerate(several):
        mount = source.get("mountPath", "/mnt/models")
        if not mount.startswith("/") or mount == "/" or ".." in mount:
            yield f"{path}.storageUris[{index}].mountPath", f"{mount!r} must be absolute, below the root, without '..'"
            return
        mounts[source.get("uri", "").startswith("pvc://")].append(mount)
    claims, others = mounts[True], mounts[False]
    if len(set(claims)) < len(claims):
        yield f"{path}.storageUris", "two claims have the same mountPath"
    if len(others) > 1 and len({mount.split("/")[1] for mount in others}) > 1:
        yield f"{path}.storageUris", "mount paths must lie in one folder below the root"


def _workers(service: Resource) -> Iterator[tuple[str, str]]:
    predictor = service["spec"]["predictor"]
    worker = predictor.get("workerSpec")
    if not isinstance(worker, dict):
        return
    if autoscaler_of(service) != "none":
        yield f"metadata.annotations.{AUTOSCALER}", "must be none with workerSpec"
    if len(worker.get("containers", [])) > 1:
        yield "spec.predictor.workerSpec.containers", "has more than one"
    model = predictor.get("model") or {}
    if str(model.get("storageUri", "")).split("://")[0] not in ("pvc", "oci"):
        yield "spec.predictor.model.storageUri", "must be pvc:// or oci:// with workerSpec"
    for variable in model.get("env", []):
        if variable.get("name") in ("PIPELINE_PARALLEL_SIZE", "TENSOR_PARALLEL_SIZE"):
            yield "spec.predictor.model.env", f"sets {variable['name']}; workerSpec says it"


def _confidential(service: Resource) -> Iterator[tuple[str, str]]:
    model = service["spec"]["predictor"].get("model") or {}
    if (model.get("confidential") or {}).get("enabled") and not model.get("storageUri"):
        yield "spec.predictor.model.confidential", "needs storageUri"


def _predictors(service: Resource) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "spec.predictor", service["spec"]["predictor"]
    for index, canary in enumerate(service["spec"].get("canary") or []):
        if isinstance(canary.get("predictor"), dict):
            yield f"spec.canary[{index}].predictor", canary["predictor"]


RULES: Final[tuple[Rule, ...]] = (
    _name,
    _classes,
    _one_implementation,
    _variables,
    _replicas,
    scaling,
    _canaries,
    _storage,
    _workers,
    _confidential,
)
