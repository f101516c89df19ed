"""How an InferenceService says that it is deployed, and by whom it is scaled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from trierarch.kserve.objects.resource import Resource

MODE: Final = "serving.kserve.io/deploymentMode"
AUTOSCALER: Final = "serving.kserve.io/autoscalerClass"
MODES: Final = {"RawDeployment": "Standard", "Serverless": "Knative"}
"""What the defaulter makes of the old names."""
AUTOSCALERS: Final = ("hpa", "external", "keda", "none")


def mode_of(service: Resource) -> str:
    """The deployment mode that an InferenceService says, by its present name; empty where it says none."""
    mode = str((service.get("metadata", {}).get("annotations") or {}).get(MODE, ""))
    return MODES.get(mode, mode)


def autoscaler_of(service: Resource) -> str:
    """Who scales it in Standard mode."""
    return str((service.get("metadata", {}).get("annotations") or {}).get(AUTOSCALER, "hpa"))


def components(service: Resource) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, component) of predictor, transformer and explainer."""
    for name in ("predictor", "transformer", "explainer"):
        component = service["spec"].get(name)
        if isinstance(component, dict):
            yield f"spec.{name}", component
