"""Where pods go, and as whom."""

from __future__ import annotations

from typing import Any

from trierarch.kserve.spec import DeploySpec


def placement(spec: DeploySpec) -> dict[str, Any]:
    """Fields of a pod that a ServingRuntime has none for, or that belong to one service alone."""
    pod: dict[str, Any] = {"automountServiceAccountToken": False}  # nothing in it talks to Kubernetes
    if spec.storage.service_account is not None:
        pod["serviceAccountName"] = spec.storage.service_account
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in spec.image_pull_secrets]
    if spec.gpu is not None and spec.gpu.node_selector:
        pod["nodeSelector"] = dict(spec.gpu.node_selector)
    if spec.gpu is not None and spec.gpu.tolerate:  # nodes that are kept for GPUs
        pod["tolerations"] = [{"key": spec.gpu.resource, "operator": "Exists", "effect": "NoSchedule"}]
    return pod
