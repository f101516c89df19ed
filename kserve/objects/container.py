"""The container of a pod: Triton over the engine with the OpenAI gateway in front, both run by `trierarch serve`.

One container, for KServe mounts the engine into one and takes ports from one, and Knative probes one. The gateway's port is named
first: KServe makes it the Service's port 80, and in Knative it is the only one. It shows Triton's metrics as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from trierarch.builder.manifest import EngineManifest
from trierarch.kserve.cold_start import PROBE_PERIOD, ColdStartBudget
from trierarch.kserve.memory import host_memory
from trierarch.kserve.objects.resource import adapters_path, engine_path
from trierarch.kserve.quantity import format_bytes
from trierarch.kserve.spec import DeploySpec, KvTiers, Profile

SHARED_MEMORY: Final = "shared-memory"
SCRATCH: Final = "scratch"
GATEWAY_PORT: Final = "http1"
"""Name of its port; Knative takes no other for HTTP."""
KEYS: Final = "api-keys"
KEYS_DIRECTORY: Final = "/etc/trierarch"
KEYS_FILE: Final = "api-keys"
KV_BLOCKS: Final = "kv-blocks"
KV_BLOCKS_DIRECTORY: Final = "/var/lib/trierarch/kv"
READY_FAILURES: Final = 2
SERVER_MARGIN: Final = 30
"""Seconds between the last stream's end and the pod's: Triton stops its backends."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a pod listens."""

    gateway: int = 9000
    """OpenAI's API, and /metrics with Triton's."""
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


def ports_of(profile: Profile) -> Ports:
    """An LLMInferenceService's Service leads to 8000, which therefore is the gateway's there."""
    return Ports(gateway=8000, http=9000) if profile is Profile.LLM else Ports()


def server_container(name: str, spec: DeploySpec, engine: EngineManifest, budget: ColdStartBudget) -> dict[str, Any]:
    """The server, kept alive and drained by `trierarch serve`; `name` is what KServe looks for."""
    container: dict[str, Any] = {
        "name": name,
        "image": spec.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["trierarch", "serve", engine_path(spec)],
        "args": _serve_options(spec, budget),
        "env": _environment(spec),
        "ports": _ports(spec.profile),
        "resources": _resources(spec, engine),
        "securityContext": security_context(),
        "volumeMounts": _mounts(spec),
        **_probes(spec, budget),
    }
    if spec.profile is not Profile.KNATIVE:  # whose queue-proxy does it, and which refuses hooks
        container["lifecycle"] = _drain_hook(spec)
    return container


def volumes(spec: DeploySpec) -> list[dict[str, Any]]:
    """What the container mounts, besides what KServe mounts."""
    shared = {"medium": "Memory", "sizeLimit": spec.resources.shared_memory}
    found = [{"name": SHARED_MEMORY, "emptyDir": shared}, {"name": SCRATCH, "emptyDir": {}}]
    if spec.kv_tiers.disk_bytes is not None:
        found.append({"name": KV_BLOCKS, "emptyDir": {}})
    if keys := spec.access.api_keys:
        items = [{"key": keys.key, "path": KEYS_FILE}]
        found.append({"name": KEYS, "secret": {"secretName": keys.secret, "items": items}})
    return found


def mount(volume: str, path: str) -> dict[str, Any]:
    """A volume's place in a container."""
    return {"name": volume, "mountPath": path}


def claim_and_folder(uri: str) -> tuple[str, str]:
    """The PersistentVolumeClaim of a pvc://CLAIM/FOLDER, and the folder, which may be empty."""
    claim, _, folder = uri.removeprefix("pvc://").partition("/")
    return claim, folder.strip("/")


def termination_grace(spec: DeploySpec) -> int:
    """Seconds from a pod's notice to its end: routers forget it, the longest stream ends, Triton stops."""
    return spec.streams.deregister + spec.streams.longest + SERVER_MARGIN


def security_context() -> dict[str, Any]:
    """No root, no new privileges, nothing writable but the mounts. All of it is allowed in Knative as well."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _serve_options(spec: DeploySpec, budget: ColdStartBudget) -> list[str]:
    ports = ports_of(spec.profile)
    adapters = [] if spec.storage.adapters is None else [f"--adapters={adapters_path(spec)}"]
    keys = [f"--api-keys={KEYS_DIRECTORY}/{KEYS_FILE}"] if spec.access.api_keys else []
    return [
        "--host=0.0.0.0",
        f"--gateway-port={ports.gateway}",
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        f"--drain-timeout={spec.streams.longest}",
        f"--ready-timeout={budget.container_deadline}",
        *adapters,
        *_tier_options(spec.kv_tiers),
        *keys,
    ]


def _tier_options(tiers: KvTiers) -> list[str]:
    host = [] if tiers.host_bytes is None else [f"--kv-host-bytes={tiers.host_bytes}"]
    if tiers.disk_bytes is None:
        return host
    return [*host, f"--kv-disk-directory={KV_BLOCKS_DIRECTORY}", f"--kv-disk-bytes={tiers.disk_bytes}"]


def _environment(spec: DeploySpec) -> list[dict[str, Any]]:
    # The user has no home in the image, and the root file system cannot be written.
    plain = {"HOME": "/tmp"} | spec.env
    found: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in sorted(plain.items())]
    for name, reference in sorted(spec.secret_env.items()):
        found.append({"name": name, "valueFrom": {"secretKeyRef": {"name": reference.secret, "key": reference.key}}})
    return found


def _ports(profile: Profile) -> list[dict[str, Any]]:
    ports = ports_of(profile)
    gateway = {"name": GATEWAY_PORT, "containerPort": ports.gateway, "protocol": "TCP"}
    if profile is Profile.KNATIVE:
        return [gateway]
    return [
        gateway,
        {"name": "http", "containerPort": ports.http, "protocol": "TCP"},
        {"name": "grpc", "containerPort": ports.grpc, "protocol": "TCP"},
        {"name": "metrics", "containerPort": ports.metrics, "protocol": "TCP"},
    ]


def _resources(spec: DeploySpec, engine: EngineManifest) -> dict[str, Any]:
    # Memory and GPUs are not given back: what is asked for is the limit. CPU may be borrowed.
    memory = spec.resources.memory or format_bytes(host_memory(spec, engine))
    gpus = {} if spec.gpu is None else {spec.gpu.resource: str(spec.gpu.count)}
    # Asked for and no limit: a pod that is a little over one is evicted.
    disk = {} if spec.kv_tiers.disk_bytes is None else {"ephemeral-storage": format_bytes(spec.kv_tiers.disk_bytes)}
    requests = {"cpu": spec.resources.cpu, "memory": memory}
    return {"requests": requests | gpus | disk, "limits": {"memory": memory} | gpus}


def _probes(spec: DeploySpec, budget: ColdStartBudget) -> dict[str, Any]:
    """Triton answers nothing before every model is loaded, so its start is the startup probe's to wait for.

    The gateway says ready while Triton is and its model's process lives, which Triton itself does not always notice.
    `trierarch serve` brings a dead Triton back by itself; liveness gives it the time that this takes. Knative sends all but the
    startup probe to the pod's one port.
    """
    ports = ports_of(spec.profile)
    is_knative = spec.profile is Profile.KNATIVE
    alive = ("/health", ports.gateway) if is_knative else ("/v2/health/live", ports.http)
    return {
        "startupProbe": _probe("/v2/health/ready", ports.http, budget.probe_failures),
        "readinessProbe": _probe("/ready", ports.gateway, READY_FAILURES),
        "livenessProbe": _probe(*alive, budget.probe_failures),
    }


def _probe(path: str, port: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
        "periodSeconds": PROBE_PERIOD,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
        "successThreshold": 1,
    }


def _drain_hook(spec: DeploySpec) -> dict[str, Any]:
    """Routers learn that a pod goes a little after the pod does: until then requests still come, and are taken."""
    return {"preStop": {"exec": {"command": ["sleep", str(spec.streams.deregister)]}}}


def _mounts(spec: DeploySpec) -> list[dict[str, Any]]:
    """Adapters of an InferenceService are mounted by KServe; of an LLMInferenceService it mounts the engine alone."""
    found = [mount(SHARED_MEMORY, "/dev/shm"), mount(SCRATCH, "/tmp")]
    if spec.kv_tiers.disk_bytes is not None:
        found.append(mount(KV_BLOCKS, KV_BLOCKS_DIRECTORY))
    if spec.access.api_keys:
        found.append(mount(KEYS, KEYS_DIRECTORY) | {"readOnly": True})
    if spec.profile is Profile.LLM and spec.storage.adapters is not None:
        _, folder = claim_and_folder(spec.storage.adapters)
        found.append(mount("adapters", adapters_path(spec)) | ({"subPath": folder} if folder else {}))
    return found
