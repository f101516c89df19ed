"""LLMInferenceService: replicas behind an InferencePool, whose endpoint picker looks into each of them.

KServe's presets run `vllm serve`; command, probes and ports of `main` replace theirs. What the picker needs is a label that
says whose metrics these are, and metrics on the pool's port: the gateway shows Triton's there.
"""

from __future__ import annotations

from typing import Any, Final

from trierarch.builder.manifest import EngineManifest
from trierarch.kserve.cold_start import ColdStartBudget
from trierarch.kserve.objects.autoscaling import hpa_behavior, prometheus_triggers
from trierarch.kserve.objects.container import (
    claim_and_folder,
    server_container,
    termination_grace,
    volumes,
)
from trierarch.kserve.objects.placement import placement
from trierarch.kserve.objects.resource import Resource, resource
from trierarch.kserve.spec import DeploySpec, KServeVersion

ENGINE_TYPE: Final = "triton-tensorrt-llm"
ENGINE_LABELS: Final = {
    "inference.networking.k8s.io/engine-type": ENGINE_TYPE,
    "llm-d.ai/engine-type": ENGINE_TYPE,
}
"""The first is what KServe writes into the picker's configuration, the second llm-d's own since 0.9."""
SCORERS: Final = {
    "queue-scorer": 2,
    "kv-cache-utilization-scorer": 2,
    "prefix-cache-scorer": 3,
    "lora-affinity-scorer": 3,
}
"""Plugin -> weight; the first three as llm-d's chart has them. An adapter that is loaded counts as much as a prefix."""


def llm_inference_service(spec: DeploySpec, engine: EngineManifest, budget: ColdStartBudget) -> Resource:
    """The service itself."""
    body = {
        "spec": {
            # What clients name: the gateway calls the model as the engine is called.
            "model": {"uri": spec.storage.uri, "name": engine.name},
            "labels": dict(ENGINE_LABELS),
            **_replicas(spec, budget),
            "router": {
                "gateway": {},
                "route": {},
                "scheduler": {"config": {"inline": picker_config(engine, budget)}},
            },
            "template": _pod(spec, engine, budget),
        }
    }
    return resource("serving.kserve.io/v1alpha2", "LLMInferenceService", spec.name, spec, body)


def picker_config(engine: EngineManifest, budget: ColdStartBudget) -> dict[str, Any]:
    """An EndpointPickerConfig of llm-d. Requests wait there, and not in an engine, while no replica is ready."""
    scorers = {name: weight for name, weight in SCORERS.items() if name != "lora-affinity-scorer" or engine.lora}
    metrics = "nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"
    mapping = {
        "name": ENGINE_TYPE,
        "queuedRequestsSpec": f"{metrics[0]}{{request_type=waiting}}",
        "runningRequestsSpec": f"{metrics[0]}{{request_type=scheduled}}",
        "kvUsageSpec": f"{metrics[1]}{{kv_cache_block_type=fraction}}",
        "loraSpec": "vllm:lora_requests_info" if engine.lora else "",
        "cacheInfoSpec": "",
        "cacheBlockSizeSpec": f"{metrics[1]}{{kv_cache_block_type=tokens_per}}",
        "cacheNumBlocksSpec": f"{metrics[1]}{{kv_cache_block_type=max}}",
    }
    return {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "featureGates": ["flowControl"],
        "flowControl": {"noEndpointRequestTTL": f"{budget.deadline}s"},
        "plugins": [
            {"type": "metrics-data-source", "parameters": {"scheme": "http", "path": "/metrics"}},
            # llm-d's own mapping for this engine type has no adapters; this one takes its place.
            {
                "type": "core-metrics-extractor",
                "parameters": {"defaultEngine": ENGINE_TYPE, "engineConfigs": [mapping]},
            },
            *({"type": name} for name in scorers),
            {"type": "max-score-picker"},
        ],
        "schedulingProfiles": [
            {
                "name": "default",
                "plugins": [
                    *({"pluginRef": name, "weight": weight} for name, weight in scorers.items()),
                    {"pluginRef": "max-score-picker"},
                ],
            }
        ],
    }


def _replicas(spec: DeploySpec, budget: ColdStartBudget) -> dict[str, Any]:
    """KServe 0.20 scales by its own autoscaler alone, which reads vLLM's metrics: replicas are fixed there."""
    if spec.kserve_version is KServeVersion.V0_20:
        return {"replicas": spec.min_replicas}
    cooldown = max(spec.scale.cooldown, budget.deadline)
    keda = {
        "pollingInterval": 15,
        "cooldownPeriod": cooldown,
        "initialCooldownPeriod": budget.deadline,
        # A rule of the CRD reads the name, and what is not there cannot be read.
        "advanced": {"horizontalPodAutoscalerConfig": {"name": "", "behavior": hpa_behavior(cooldown)}},
        "triggers": prometheus_triggers(spec),
    }
    return {"scaling": {"minReplicas": spec.min_replicas, "maxReplicas": spec.scale.max_replicas, "keda": keda}}


def _pod(spec: DeploySpec, engine: EngineManifest, budget: ColdStartBudget) -> dict[str, Any]:
    return {
        "containers": [server_container("main", spec, engine, budget)],
        "terminationGracePeriodSeconds": termination_grace(spec),
        "volumes": [*volumes(spec), *_adapter_volumes(spec)],
        **placement(spec),
    }


def _adapter_volumes(spec: DeploySpec) -> list[dict[str, Any]]:
    """A claim of adapters; KServe itself fetches adapters for vLLM alone."""
    if spec.storage.adapters is None:
        return []
    claim, _ = claim_and_folder(spec.storage.adapters)
    return [{"name": "adapters", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}]
