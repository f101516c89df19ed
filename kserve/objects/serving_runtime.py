"""ClusterServingRuntime: Triton with this backend, for KServe to run an engine with."""

from __future__ import annotations

from trierarch.builder.manifest import EngineManifest
from trierarch.kserve.cold_start import ColdStartBudget
from trierarch.kserve.objects.container import ports_of, server_container, volumes
from trierarch.kserve.objects.resource import MODEL_FORMAT, Resource, resource, runtime_name
from trierarch.kserve.spec import DeploySpec

CONTAINER = "kserve-container"
"""What KServe calls the container that it mounts the engine into."""


def serving_runtime(spec: DeploySpec, engine: EngineManifest, budget: ColdStartBudget) -> Resource:
    """The runtime of one service: its probes and limits follow from that service's engine.

    Never chosen by itself (`autoSelect` is off): the InferenceService names it.
    """
    scraped = str(ports_of(spec.profile).gateway)
    body = {
        "spec": {
            "annotations": {"prometheus.kserve.io/path": "/metrics", "prometheus.kserve.io/port": scraped},
            "supportedModelFormats": [{"name": MODEL_FORMAT, "version": "1", "autoSelect": False}],
            "protocolVersions": ["v2", "grpc-v2"],
            "containers": [server_container(CONTAINER, spec, engine, budget)],
            "volumes": volumes(spec),
        }
    }
    return resource(
        "serving.kserve.io/v1alpha1",
        "ClusterServingRuntime",
        runtime_name(spec),
        spec,
        body,
        namespace=None,
        annotations={"serving.kserve.io/server-type": "tritonserver"},
    )
