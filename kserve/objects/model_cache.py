"""LocalModelCache: the engine on nodes' own disks before any pod asks for it."""

from __future__ import annotations

from trierarch.builder.manifest import EngineManifest
from trierarch.kserve.memory import engine_bytes
from trierarch.kserve.objects.resource import Resource, resource, runtime_name
from trierarch.kserve.quantity import format_bytes
from trierarch.kserve.spec import DeploySpec

MIB = 1 << 20


def model_cache(spec: DeploySpec, engine: EngineManifest) -> Resource:
    """KServe finds it by the InferenceService's own storageUri."""
    size = -(-engine_bytes(engine) // MIB) * MIB
    body: Resource = {
        "spec": {
            "sourceModelUri": spec.storage.uri,
            "modelSize": format_bytes(max(size, MIB)),
            "nodeGroups": list(spec.storage.node_cache),
        }
    }
    if spec.storage.service_account is not None:
        body["spec"]["serviceAccountName"] = spec.storage.service_account
    return resource("serving.kserve.io/v1alpha1", "LocalModelCache", runtime_name(spec), spec, body, namespace=None)
