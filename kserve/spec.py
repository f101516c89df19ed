"""DeploySpec: what is to be deployed, as flags or a file say it. Each default is written here and nowhere else.

Times are seconds. What follows from an engine as well (bytes, probes, limits) is worked out in `cold_start.py` and `memory.py`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from trierarch.builder.manifest import Frozen, PositiveInt
from trierarch.kserve.plain_secrets import secret_in

NAME_PATTERN: Final = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""Of an InferenceService: KServe's own rule, narrower than Kubernetes'."""
MAX_NAME: Final = 40
"""Characters: KServe puts up to 20 behind a name, and a label and a host name's part hold 63."""

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_NAME)]
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Uri = Annotated[str, Field(pattern=r"^[a-z0-9+]+://[^\s]+$")]
Seconds = Annotated[float, Field(ge=0)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([KMGTP]i?|m)?$")]


class Profile(StrEnum):
    """How the service is scaled, and by whom."""

    KNATIVE = "knative"
    """KServe's Knative mode: to zero and back, requests wait in Knative's activator."""
    KEDA = "keda"
    """KServe's Standard mode with the ScaledObject that KServe writes: one replica at least."""
    EXTERNAL = "external"
    """Standard mode with a ScaledObject of ours and KEDA's HTTP add-on: to zero and back, requests wait in its interceptor."""
    LLM = "llm"
    """LLMInferenceService: an InferencePool behind an endpoint picker that knows queue, KV use, prefixes and adapters."""

    @property
    def reaches_zero(self) -> bool:
        """Whether the service may have no replica at all."""
        return self in (Profile.KNATIVE, Profile.EXTERNAL)

    @property
    def is_standard(self) -> bool:
        """Whether KServe writes a plain Deployment for an InferenceService."""
        return self in (Profile.KEDA, Profile.EXTERNAL)


class KServeVersion(StrEnum):
    """Minor release of KServe that the cluster runs."""

    V0_20 = "0.20"
    V0_21 = "0.21"


class Storage(Frozen):
    """Where the engine and its adapters come from."""

    uri: Uri
    """Of the engine: pvc://CLAIM/PATH, oci://IMAGE, oci+native://IMAGE, s3://, gs://, https://, hf:// and KServe's others."""
    adapters: Uri | None = None
    """Of a directory of LoRA adapters. On a pvc:// it is looked into at every request, elsewhere copied once."""
    node_cache: tuple[Label, ...] = ()
    """Groups of nodes (LocalModelNodeGroup) that keep the engine on their disks, by a LocalModelCache."""
    service_account: Label | None = None
    """Whose credentials read it."""

    @property
    def scheme(self) -> str:
        """What stands before `://` of the engine's."""
        return self.uri.split("://", 1)[0]


class Gpu(Frozen):
    """The accelerators of one replica."""

    product: str
    """A name of `gpu.py`'s table, such as H100-80GB; any other with `memory`."""
    count: PositiveInt = 1
    memory: Annotated[int, Field(gt=0)] | None = None
    """Bytes of one, where the table does not know it or is wrong."""
    resource: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")] = "nvidia.com/gpu"
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerate: bool = True
    """Whether pods go to nodes that are tainted for this resource."""


class Resources(Frozen):
    """Of Triton's container; the gateway's are fixed."""

    cpu: Quantity = "4"
    memory: Quantity | None = None
    """None is worked out from the engine."""
    shared_memory: Quantity = "1Gi"
    """Of /dev/shm, where Triton and the backend exchange tensors."""


class KvTiers(Frozen):
    """Of each replica: where keys and values go that its KV cache has no room for. Bytes."""

    host_bytes: PositiveInt | None = None
    """Of host memory; what the container asks for by itself is more by so much."""
    disk_bytes: PositiveInt | None = None
    """Of a node's disk, for as long as the pod is there; they come by way of host memory."""


class Scale(Frozen):
    """How many replicas, and what for."""

    min_replicas: int | None = Field(default=None, ge=0)
    """None: 0 where the profile reaches zero, else 1."""
    max_replicas: PositiveInt = 4
    queue_target: PositiveInt = 4
    """Waiting requests a replica: the first signal."""
    kv_target: float = Field(default=0.8, gt=0, le=1)
    """Share of KV blocks in use a replica: the guard."""
    concurrency_target: PositiveInt | None = None
    """Open requests a replica, where a proxy counts them (knative, external). None is the engine's max_batch_size."""
    cooldown: PositiveInt = 300
    """Idle time before replicas go, at least; never shorter than a cold start."""


class ColdStart(Frozen):
    """What a start from nothing is reckoned with. None of these was measured here: measure yours and say so."""

    node_provision: Seconds = 180
    """Until a node with a free GPU is there; 0 where nodes are kept."""
    image_pull: Seconds = 120
    """The server's image onto a new node; 0 where nodes have it."""
    storage_bandwidth: PositiveInt = 100_000_000
    """Bytes a second from where the engine is stored."""
    load_bandwidth: PositiveInt = 1_000_000_000
    """Bytes a second from a node's disk into place."""
    server_start: Seconds = 10
    """Triton and its backend processes, before weights are read."""
    warm_up: Seconds = 20
    """From loaded weights to a first answer at full speed."""
    margin: float = Field(default=2.0, ge=1)
    """Probes and deadlines allow so many times what was reckoned."""
    ttft_objective: Annotated[float, Field(gt=0)] | None = None
    """Seconds to a first token that callers were promised, a cold start included."""


class Streams(Frozen):
    """How long answers may take, and how they end."""

    longest: PositiveInt = 540
    """Seconds of the longest answer. Knative's own limit is 600, its wait for a cold start included."""
    deregister: PositiveInt = 15
    """Seconds between being told to end and refusing requests: routers learn of it meanwhile."""


class Canary(Frozen):
    """A new engine that gets a share of the requests."""

    uri: Uri
    """Of the new engine; `Storage.uri` stays the old one's."""
    percent: int = Field(ge=0, le=100)
    name: Name = "canary"


class Monitoring(Frozen):
    """Who scrapes, and where queries go."""

    prometheus: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] = "http://prometheus-operated.monitoring.svc:9090"
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels by which a Prometheus operator chooses rules and monitors, such as release: prometheus-stack."""
    interval: PositiveInt = 15
    """Seconds between scrapes."""


class SecretRef(Frozen):
    """A key of a Secret that is in the cluster."""

    secret: Label
    key: str


class Access(Frozen):
    """Who reaches the pods, and by what name."""

    host: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)] | None = None
    """Host that clients name; None is NAME.NAMESPACE.example.com, where a profile needs one."""
    gateway: Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")] | None = None
    """NAMESPACE/NAME of a Gateway that leads to the HTTP add-on's interceptor."""
    from_namespaces: tuple[Label, ...] = ()
    """Namespaces whose pods may connect, besides the service's own and those that the profile needs."""
    api_keys: SecretRef | None = None
    """Keys of the OpenAI gateway's clients, one a line; without, everybody who gets there may ask."""


class DeploySpec(Frozen):
    """The whole of it."""

    name: Name
    namespace: Label = "default"
    profile: Profile
    kserve_version: KServeVersion = KServeVersion.V0_20
    image: Annotated[str, Field(pattern=r"^[a-z0-9][^\s]*$")]
    """Built by docker/Dockerfile: Triton with this backend, by tag or digest."""
    image_pull_secrets: tuple[Label, ...] = ()
    storage: Storage
    gpu: Gpu | None = None
    """None runs on the CPU."""
    resources: Resources = Resources()
    kv_tiers: KvTiers = KvTiers()
    scale: Scale = Scale()
    cold_start: ColdStart = ColdStart()
    streams: Streams = Streams()
    canary: Canary | None = None
    monitoring: Monitoring = Monitoring()
    access: Access = Access()
    env: dict[str, str] = Field(default_factory=dict)
    secret_env: dict[str, SecretRef] = Field(default_factory=dict)
    """Environment variable -> where its value is kept."""
    disaggregated: bool = False
    """Prefill and decode on different pods: no executor here does that, and True is refused."""

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        for name, value in self.env.items():
            if reason := secret_in(name, value):
                raise ValueError(
                    f"env.{name} {reason}, and manifests are kept and shown: put it into a Secret and name that "
                    f"in secret_env: {{{name}: {{secret: NAME, key: KEY}}}}"
                )
        uris = {
            "storage.uri": self.storage.uri,
            "storage.adapters": self.storage.adapters,
            "canary.uri": None if self.canary is None else self.canary.uri,
        }
        for field, uri in uris.items():
            if uri is not None and (reason := secret_in("", uri)):
                raise ValueError(
                    f"{field} {reason}: give the credentials to a service account instead, and name that in "
                    "storage.service_account"
                )
        return self

    @property
    def min_replicas(self) -> int:
        """Replicas that are always there."""
        default = 0 if self.profile.reaches_zero else 1
        return default if self.scale.min_replicas is None else self.scale.min_replicas

    @property
    def host(self) -> str:
        """Host that clients name, where a profile needs one."""
        return self.access.host or f"{self.name}.{self.namespace}.example.com"

    @property
    def engine_uri(self) -> str:
        """What the predictor serves; in Knative a canary is the next revision of the same predictor."""
        return self.canary.uri if self.canary is not None and self.profile is Profile.KNATIVE else self.storage.uri
