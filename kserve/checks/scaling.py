"""What KServe's webhook refuses of an InferenceService's scaling: each autoscaler takes metrics of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trierarch.kserve.checks.service_mode import AUTOSCALER, autoscaler_of, components, mode_of
from trierarch.kserve.objects.resource import Resource
from trierarch.kserve.quantity import quantity_bytes


def scaling(service: Resource) -> Iterator[tuple[str, str]]:
    """(path, message) of each rule of scaling that `service` breaks."""
    mode, autoscaler = mode_of(service), autoscaler_of(service)
    for path, component in components(service):
        if mode != "Standard":
            yield from _knative_scaling(path, component)
        elif autoscaler == "keda":
            yield from _keda_scaling(path, component)
        elif autoscaler == "hpa" and AUTOSCALER in (service["metadata"].get("annotations") or {}):
            yield from _hpa_scaling(path, component)


def _knative_scaling(path: str, component: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if component.get("deploymentStrategy"):
        yield f"{path}.deploymentStrategy", "is of Standard mode; Knative has its own"
    metric = component.get("scaleMetric", "concurrency")
    if metric not in ("concurrency", "rps"):
        yield f"{path}.scaleMetric", f"is {metric!r}; Knative scales on concurrency or rps"
    if metric == "rps" and component.get("scaleTarget", 1) < 1:
        yield f"{path}.scaleTarget", "is below 1"


def _hpa_scaling(path: str, component: dict[str, Any]) -> Iterator[tuple[str, str]]:
    metric, target = component.get("scaleMetric", "cpu"), component.get("scaleTarget")
    if metric not in ("cpu", "memory"):
        yield f"{path}.scaleMetric", f"is {metric!r}; an HPA scales on cpu or memory"
    if target is not None and not (1 <= target <= 100):
        yield f"{path}.scaleTarget", f"is {target}, not a percentage from 1 to 100"
    for index, found in enumerate(_metrics(component)):
        if found.get("type") != "Resource" or not found.get("resource"):
            yield f"{path}.autoScaling.metrics[{index}]", "an HPA takes metrics of type Resource alone"


def _keda_scaling(path: str, component: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if component.get("scaleMetric") is not None:
        yield f"{path}.scaleMetric", "is not for KEDA: say autoScaling.metrics"
    for index, found in enumerate(_metrics(component)):
        place = f"{path}.autoScaling.metrics[{index}]"
        kind = found.get("type")
        if kind == "Resource":
            yield from _keda_resource(place, found.get("resource"))
        elif kind in ("External", "PodMetric"):
            yield from _keda_query(place, found.get("external" if kind == "External" else "podmetric"))
        else:
            yield place, f"type is {kind!r}, none of Resource, External, PodMetric"


def _keda_resource(path: str, source: Any) -> Iterator[tuple[str, str]]:
    if not source:
        yield path, "resource is missing"
        return
    name, target = source.get("name"), source.get("target", {})
    kind = target.get("type")
    if name not in ("cpu", "memory"):
        yield path, f"resource is {name!r}, neither cpu nor memory"
    elif kind != "Utilization" and (name == "cpu" or kind != "AverageValue"):
        yield path, "the target's type must be Utilization (of memory, AverageValue is taken too)"
    elif kind == "AverageValue" and quantity_bytes(str(target.get("averageValue", "0"))) < quantity_bytes("1Mi"):
        yield path, "the target is less than 1Mi"
    if kind == "Utilization" and not 1 <= target.get("averageUtilization", 0) <= 100:
        yield path, "averageUtilization is not a percentage from 1 to 100"


def _keda_query(path: str, source: Any) -> Iterator[tuple[str, str]]:
    if not source or not source.get("metric", {}).get("query"):
        yield path, "has no query"
    elif source.get("target", {}).get("value") is None:
        yield path, "has no target.value, the one that KServe hands on as KEDA's threshold"


def _metrics(component: dict[str, Any]) -> list[dict[str, Any]]:
    return list((component.get("autoScaling") or {}).get("metrics") or [])
