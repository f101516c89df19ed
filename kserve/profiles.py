"""What each profile is: who holds requests while nothing runs, what must be installed, what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import EngineManifest
from trierarch.kserve.spec import DeploySpec, KServeVersion, Profile


@dataclass(frozen=True, slots=True)
class ProfileFacts:
    """For the tables in docs/deploying.md and for messages."""

    buffer: str
    """Where requests wait while no replica is ready."""
    signal: str
    """What replicas follow."""
    installed: tuple[str, ...]
    """What the cluster must have, besides Kubernetes and a Prometheus operator."""
    holder: str = ""
    """Whose metrics Prometheus must read for the dashboard to show held requests."""


FACTS: Final = {
    Profile.KNATIVE: ProfileFacts(
        "Knative's activator",
        "open requests",
        ("KServe with Knative Serving",),
        "Knative's activator (Serving 1.22 or later, metrics-protocol: prometheus in config-observability)",
    ),
    Profile.KEDA: ProfileFacts(
        "nobody: one replica stays",
        "waiting requests, KV blocks",
        ("KServe in Standard mode", "KEDA 2.18 or later"),
    ),
    Profile.EXTERNAL: ProfileFacts(
        "the HTTP add-on's interceptor",
        "open requests, waiting requests, KV blocks",
        ("KServe in Standard mode", "KEDA 2.18 or later", "KEDA HTTP add-on 0.15 or later"),
        "the HTTP add-on's interceptor (port 2223)",
    ),
    Profile.LLM: ProfileFacts(
        "the endpoint picker's queue",
        "waiting requests, KV blocks (KServe 0.21); fixed replicas before",
        ("KServe with LLMInferenceService", "a Gateway with the Inference Extension", "KEDA (KServe 0.21)"),
        "the endpoint picker (llm-d's router 0.9 or later)",
    ),
}


def check_profile(spec: DeploySpec, engine: EngineManifest) -> None:
    """Refuse what the profile, or the executor, cannot do.

    Raises:
        ConfigError: with what can.
    """
    _check_scale(spec)
    _check_canary(spec)
    _check_storage(spec, engine)
    if spec.disaggregated:
        raise ConfigError(
            "disaggregated is True: prefill and decode on different pods need an executor that hands KV over, and none "
            "here does; leave it out (chunked prefill keeps long prompts from stalling answers)"
        )
    if ":" not in spec.image.rsplit("/", 1)[-1] and "@" not in spec.image:
        raise ConfigError(f"image is {spec.image!r}, which means a tag that moves: name a tag or a digest")
    if spec.image.endswith(":latest"):
        raise ConfigError(f"image is {spec.image!r}, a tag that moves: name another, or a digest")


def notes(spec: DeploySpec) -> tuple[str, ...]:
    """What the cluster must have or be told for `spec` to work."""
    facts = FACTS[spec.profile]
    found = [f"needs {what}" for what in facts.installed]
    if facts.holder:
        found.append(f"the dashboard shows held requests where Prometheus reads {facts.holder}")
    if spec.profile is Profile.KNATIVE:
        found.append(f"needs, enabled in Knative's config-features: {', '.join(knative_features(spec))}")
    if spec.profile is Profile.EXTERNAL and spec.access.gateway is None:
        found.append(
            f"clients reach it through keda-add-ons-http-interceptor-proxy.keda:8080 with the host {spec.host}; "
            "name a Gateway with --gateway to have a route from outside"
        )
    if spec.profile is Profile.LLM:
        found.append(
            "needs enableLLMInferenceServiceTLS: false in KServe's inferenceservice-config: the gateway speaks plain HTTP"
        )
    if spec.storage.node_cache:
        found.append(
            "needs localModel.enabled: true in KServe's inferenceservice-config, and the LocalModelNodeGroups named"
        )
    if "oci+native" in (spec.storage.scheme, _scheme(spec.storage.adapters)):
        found.append("needs Kubernetes with image volumes (feature ImageVolume)")
    return tuple(found)


def knative_features(spec: DeploySpec) -> tuple[str, ...]:
    """Flags of Knative's config-features that the pod needs and that are off as shipped."""
    schemes = {spec.storage.scheme, _scheme(spec.storage.adapters)}
    wanted = {
        "kubernetes.podspec-nodeselector": spec.gpu is not None and bool(spec.gpu.node_selector),
        "kubernetes.podspec-tolerations": spec.gpu is not None and spec.gpu.tolerate,
        "kubernetes.podspec-persistent-volume-claim": "pvc" in schemes or bool(spec.storage.node_cache),
        "kubernetes.podspec-volumes-image": "oci+native" in schemes,
        "kubernetes.podspec-shareprocessnamespace": "oci" in schemes,
        "kubernetes.podspec-init-containers": bool(schemes - {"pvc", "oci+native", None}),
    }
    return tuple(name for name, is_wanted in wanted.items() if is_wanted)


def _check_scale(spec: DeploySpec) -> None:
    if spec.min_replicas == 0 and not spec.profile.reaches_zero:
        why = {
            Profile.KEDA: "KServe would go to zero, and nothing holds the requests that come then",
            Profile.LLM: "nothing starts a first replica of an LLMInferenceService",
        }[spec.profile]
        raise ConfigError(
            f"scale.min_replicas is 0 in profile {spec.profile}: {why}. Profiles knative and external reach zero; or say "
            "--min-replicas 1"
        )
    if spec.scale.max_replicas < spec.min_replicas:
        raise ConfigError(
            f"scale.max_replicas is {spec.scale.max_replicas}, fewer than min_replicas, {spec.min_replicas}; raise it"
        )


def _check_canary(spec: DeploySpec) -> None:
    if spec.canary is None:
        return
    remedies = {
        Profile.EXTERNAL: "the interceptor sends everything to the stable predictor; use profile keda or knative",
        Profile.LLM: "deploy a second LLMInferenceService and split by router.route.group and weight",
    }
    if spec.profile in remedies:
        raise ConfigError(f"canary is set in profile {spec.profile}: {remedies[spec.profile]}")
    if spec.storage.node_cache:
        raise ConfigError("canary is set with storage.node_cache, which keeps one engine: leave one of them out")


def _check_storage(spec: DeploySpec, engine: EngineManifest) -> None:
    storage = spec.storage
    if storage.adapters is not None and engine.lora is None:
        raise ConfigError(
            f"storage.adapters is set, and engine {engine.name!r} takes none; build it with --max-adapters 1 or more"
        )
    if storage.adapters is not None and storage.node_cache:
        raise ConfigError(
            "storage.node_cache is set with storage.adapters: KServe caches a single storageUri alone; build the adapters "
            "into the engine (trierarch build --adapter), or leave one of them out"
        )
    if storage.node_cache and storage.scheme in ("pvc", "oci+native"):
        raise ConfigError(f"storage.node_cache is set, and {storage.uri} is on the nodes without it; leave it out")
    if spec.profile is Profile.LLM:
        if storage.adapters is not None and _scheme(storage.adapters) != "pvc":
            raise ConfigError(
                f"storage.adapters is {storage.adapters!r}: an LLMInferenceService fetches adapters for vLLM alone; put "
                "them on a volume, pvc://CLAIM"
            )
        if storage.node_cache:
            raise ConfigError(
                "storage.node_cache is set in profile llm: KServe matches its caches with InferenceServices; use "
                "oci+native://, whose image a node keeps"
            )
    if storage.adapters is not None and "oci" in (storage.scheme, _scheme(storage.adapters)):
        raise ConfigError(
            "storage has oci:// beside adapters: it links /mnt/models as a whole; use oci+native:// for images"
        )
    if "oci+fetch" in (storage.scheme, _scheme(storage.adapters)) and spec.kserve_version is KServeVersion.V0_20:
        raise ConfigError(
            "storage has oci+fetch://, which KServe knows from 0.21 on; use oci+native:// or --kserve-version 0.21"
        )


def _scheme(uri: str | None) -> str | None:
    return None if uri is None else uri.split("://", 1)[0]
