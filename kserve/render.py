"""Renders a DeploySpec and an engine to Kubernetes objects, and those to files: no templates, nothing to fill in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import yaml

from trierarch.builder.manifest import EngineManifest
from trierarch.kserve.cold_start import ColdStartBudget, cold_start_budget
from trierarch.kserve.memory import check_fits
from trierarch.kserve.objects.autoscaling import gateway_route, interceptor_route, scaled_object
from trierarch.kserve.objects.dashboard import dashboard
from trierarch.kserve.objects.inference_service import inference_service
from trierarch.kserve.objects.llm_inference_service import llm_inference_service
from trierarch.kserve.objects.model_cache import model_cache
from trierarch.kserve.objects.monitoring import pod_monitor, prometheus_rule
from trierarch.kserve.objects.protection import disruption_budget, network_policy
from trierarch.kserve.objects.resource import Resource
from trierarch.kserve.objects.serving_runtime import serving_runtime
from trierarch.kserve.profiles import check_profile
from trierarch.kserve.spec import DeploySpec, Profile

KUSTOMIZATION: Final = "kustomization.yaml"
MARK: Final = "# Written by trierarch deploy; change the spec and render again, or patch with kustomize.\n"


@dataclass(frozen=True, slots=True)
class Rendering:
    """What became of a spec."""

    spec: DeploySpec
    engine: EngineManifest
    budget: ColdStartBudget
    objects: tuple[Resource, ...]
    """In the order in which they may be applied: what others refer to comes first."""

    def files(self) -> dict[str, str]:
        """File name -> its text: one object a file, and the kustomization that lists them."""
        named = {file_name(found): found for found in self.objects}
        assert len(named) == len(self.objects), "two objects would share a file"
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": list(named),
        }
        return {KUSTOMIZATION: MARK + to_yaml(kustomization)} | {name: to_yaml(found) for name, found in named.items()}


def render(spec: DeploySpec, engine: EngineManifest) -> Rendering:
    """Everything that `spec` asks for.

    Raises:
        ConfigError: it cannot work: it does not fit the device, or the profile cannot do it.
    """
    check_profile(spec, engine)
    check_fits(spec, engine)
    budget = cold_start_budget(spec, engine)
    return Rendering(spec, engine, budget, tuple(_objects(spec, engine, budget)))


def file_name(found: Resource) -> str:
    """Of the file that holds an object."""
    return f"{found['kind'].lower()}-{found['metadata']['name']}.yaml"


def to_yaml(document: Any) -> str:
    """Keys sorted but for the four that every reader looks for first; lines are not folded."""
    if isinstance(document, dict):
        first = [key for key in ("apiVersion", "kind", "metadata", "spec") if key in document]
        document = {key: document[key] for key in first} | {
            key: document[key] for key in sorted(document) if key not in first
        }
        document = {key: _sorted(value) for key, value in document.items()}
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)


def _objects(spec: DeploySpec, engine: EngineManifest, budget: ColdStartBudget) -> list[Resource]:
    found: list[Resource] = []
    if spec.storage.node_cache:
        found.append(model_cache(spec, engine))
    found.append(network_policy(spec))
    if spec.profile is Profile.LLM:
        found.append(llm_inference_service(spec, engine, budget))
    else:
        found += [serving_runtime(spec, engine, budget), inference_service(spec, engine, budget)]
    if spec.profile is Profile.EXTERNAL:
        found += [interceptor_route(spec, engine, budget), scaled_object(spec, budget), *gateway_route(spec)]
    found += [disruption_budget(spec), pod_monitor(spec), prometheus_rule(spec, budget), dashboard(spec)]
    return found


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Objects share values; files do not."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
