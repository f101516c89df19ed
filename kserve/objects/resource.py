"""The envelope that every object shares, and the names that several objects must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from trierarch.kserve.spec import DeploySpec, Profile

Resource = dict[str, Any]
"""One Kubernetes object: apiVersion, kind, metadata and the rest, of plain values."""

MANAGER: Final = "trierarch"
MODEL: Final = "tensorrt_llm"
"""The model that holds the executor, and so the label `model` of its metrics."""
MODEL_FORMAT: Final = "tensorrt-llm"
MODELS: Final = "/mnt/models"
ENGINE_BESIDE: Final = "/mnt/models/engine"
"""Where the engine lies when adapters lie beside it: KServe wants one common parent below the root."""
ADAPTERS_BESIDE: Final = "/mnt/models/adapters"
ADAPTERS_APART: Final = "/mnt/adapters"
"""Where KServe mounts the engine over the whole of MODELS."""


def resource(
    api_version: str,
    kind: str,
    name: str,
    spec: DeploySpec,
    body: Mapping[str, Any],
    *,
    namespace: str | None = "",
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Resource:
    """An object of `kind`; `namespace` is the spec's unless said, and None for what is cluster-wide."""
    metadata: Resource = {"name": name, "labels": common_labels(spec) | dict(labels or {})}
    if namespace is not None:
        metadata["namespace"] = namespace or spec.namespace
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}


def common_labels(spec: DeploySpec) -> dict[str, str]:
    """Labels of everything that is rendered for `spec`."""
    return {
        "app.kubernetes.io/instance": spec.name,
        "app.kubernetes.io/managed-by": MANAGER,
        "app.kubernetes.io/name": MANAGER,
    }


def pod_labels(spec: DeploySpec) -> dict[str, str]:
    """Labels that KServe puts on the pods of `spec`, and that others choose them by."""
    if spec.profile is Profile.LLM:
        return {
            "app.kubernetes.io/name": spec.name,
            "app.kubernetes.io/part-of": "llminferenceservice",
            "kserve.io/component": "workload",
        }
    return {"component": "predictor", "serving.kserve.io/inferenceservice": spec.name}


def runtime_name(spec: DeploySpec) -> str:
    """Of the ClusterServingRuntime, which all namespaces see."""
    return f"{MANAGER}-{spec.namespace}-{spec.name}"


def predictor_name(spec: DeploySpec) -> str:
    """Of the Deployment and the Service that KServe writes in Standard mode."""
    return f"{spec.name}-predictor"


def pool_name(spec: DeploySpec) -> str:
    """Of the InferencePool that KServe writes for an LLMInferenceService."""
    return f"{spec.name}-inference-pool"


def engine_path(spec: DeploySpec) -> str:
    """Where the engine is mounted."""
    return MODELS if spec.storage.adapters is None or spec.profile is Profile.LLM else ENGINE_BESIDE


def adapters_path(spec: DeploySpec) -> str:
    """Where adapters are mounted, if there are any."""
    return ADAPTERS_APART if spec.profile is Profile.LLM else ADAPTERS_BESIDE
