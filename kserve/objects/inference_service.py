"""InferenceService, for the profiles knative, keda and external."""

from __future__ import annotations

from typing import Any, Final

from trierarch.builder.manifest import EngineManifest
from trierarch.kserve.cold_start import KNATIVE_PROGRESS_DEADLINE, ColdStartBudget, knative_timeout
from trierarch.kserve.objects.container import termination_grace
from trierarch.kserve.objects.placement import placement
from trierarch.kserve.objects.resource import (
    MODEL_FORMAT,
    Resource,
    adapters_path,
    engine_path,
    resource,
    runtime_name,
)
from trierarch.kserve.objects.signals import KV_PERCENT, kv_query, waiting_query
from trierarch.kserve.spec import DeploySpec, Profile

KNATIVE_MAX_RETENTION: Final = 3600
"""Seconds that Knative lets an idle pod stay at most."""


def inference_service(spec: DeploySpec, engine: EngineManifest, budget: ColdStartBudget) -> Resource:
    """The service itself."""
    labels = {"networking.kserve.io/visibility": "cluster-local"} if spec.profile is Profile.EXTERNAL else {}
    body = {"spec": {"predictor": _predictor(spec, engine, budget), **_standard_canary(spec)}}
    return resource(
        "serving.kserve.io/v1beta1",
        "InferenceService",
        spec.name,
        spec,
        body,
        annotations=_annotations(spec, budget),
        labels=labels,
    )


def concurrency_target(spec: DeploySpec, engine: EngineManifest) -> int:
    """Open requests a replica is good for."""
    return spec.scale.concurrency_target or engine.limits.max_batch_size


def _annotations(spec: DeploySpec, budget: ColdStartBudget) -> dict[str, str]:
    if spec.profile is Profile.KNATIVE:
        cooldown = min(max(spec.scale.cooldown, budget.deadline), KNATIVE_MAX_RETENTION)
        return {
            "serving.kserve.io/deploymentMode": "Knative",
            "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev",
            "autoscaling.knative.dev/scale-to-zero-pod-retention-period": f"{cooldown}s",
            "serving.knative.dev/progress-deadline": f"{max(KNATIVE_PROGRESS_DEADLINE, budget.deadline)}s",
        }
    return {"serving.kserve.io/deploymentMode": "Standard", "serving.kserve.io/autoscalerClass": spec.profile.value}


def _predictor(spec: DeploySpec, engine: EngineManifest, budget: ColdStartBudget) -> dict[str, Any]:
    predictor: dict[str, Any] = {
        "minReplicas": spec.min_replicas,
        "maxReplicas": spec.scale.max_replicas,
        **placement(spec),
        **_model(spec, spec.engine_uri),
    }
    if spec.profile is Profile.KNATIVE:
        limits = engine.limits
        predictor |= {
            "scaleMetric": "concurrency",
            "scaleTarget": concurrency_target(spec, engine),
            # One more the engine would refuse; here it waits in the queue-proxy.
            "containerConcurrency": limits.max_batch_size + limits.max_queue_size,
            "timeout": knative_timeout(spec, budget),
        }
        if spec.canary is not None:
            predictor["canaryTrafficPercent"] = spec.canary.percent
        return predictor
    predictor |= {
        "timeout": spec.streams.longest,
        "terminationGracePeriodSeconds": termination_grace(spec),
        # On a pool without a spare GPU, a new pod can only come when an old one has gone.
        "deploymentStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
    }
    if spec.profile is Profile.KEDA:
        predictor["autoScaling"] = _keda_metrics(spec, budget)
    return predictor


def _model(spec: DeploySpec, uri: str) -> dict[str, Any]:
    model: dict[str, Any] = {
        "modelFormat": {"name": MODEL_FORMAT},
        "protocolVersion": "v2",
        "runtime": runtime_name(spec),
    }
    if spec.storage.adapters is None:
        return {"model": model | {"storageUri": uri}}
    return {
        "model": model,
        "storageUris": [
            {"uri": uri, "mountPath": engine_path(spec)},
            {"uri": spec.storage.adapters, "mountPath": adapters_path(spec)},
        ],
    }


def _keda_metrics(spec: DeploySpec, budget: ColdStartBudget) -> dict[str, Any]:
    def metric(query: str, value: str) -> dict[str, Any]:
        return {
            "type": "External",
            "external": {
                "metric": {"backend": "prometheus", "serverAddress": spec.monitoring.prometheus, "query": query},
                "target": {"type": "Value", "value": value},
            },
        }

    cooldown = max(spec.scale.cooldown, budget.deadline)
    return {
        "metrics": [
            metric(waiting_query(spec), str(spec.scale.queue_target)),
            metric(kv_query(spec), str(round(spec.scale.kv_target * KV_PERCENT))),
        ],
        # Of a behaviour KServe hands on the windows alone.
        "behavior": {
            "scaleDown": {"stabilizationWindowSeconds": min(cooldown, 3600)},
            "scaleUp": {"stabilizationWindowSeconds": 0},
        },
    }


def _standard_canary(spec: DeploySpec) -> dict[str, Any]:
    if spec.canary is None or not spec.profile.is_standard:
        return {}
    predictor = {
        "name": spec.canary.name,
        "minReplicas": 1,
        "timeout": spec.streams.longest,
        "terminationGracePeriodSeconds": termination_grace(spec),
        **placement(spec),
        **_model(spec, spec.canary.uri),
    }
    # Of a canary the CRD demands the container's name, and the webhook that it be empty.
    predictor["model"] |= {"name": ""}
    return {"canary": [{"predictor": predictor, "trafficPercent": spec.canary.percent}]}
