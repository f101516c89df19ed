"""`trierarch deploy`: an engine becomes manifests for KServe, checked and, if wanted, applied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trierarch.builder.errors import ConfigError

if TYPE_CHECKING:
    from trierarch.kserve.checks.check import Checker, Report
    from trierarch.kserve.objects.resource import Resource
    from trierarch.kserve.render import Rendering

STORAGE = "Where the engine comes from"
SCALING = "How many replicas, and of what"
COLD = "What a cold start is reckoned with: assumptions until you measure yours"
CHECKING = "Checking and applying"


def deploy(
    files: Annotated[
        list[Path] | None, typer.Argument(help="With --check: manifests, or directories of them.", metavar="[FILE]...")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="knative, keda, external or llm: see docs/deploying.md.")
    ] = None,
    engine: Annotated[Path | None, typer.Option(metavar="DIR", help="The engine; only its manifest is read.")] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the manifests go, whole or not at all.")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with a section deploy; options here win over it.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the service.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Where it goes.", show_default="default")] = None,
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Built by docker/Dockerfile, with a tag or digest.")
    ] = None,
    kserve_version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="0.20 or 0.21.", show_default="0.20")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Of the engine: pvc://, oci+native://, oci://, s3://...", rich_help_panel=STORAGE
        ),
    ] = None,
    adapters: Annotated[
        str | None, typer.Option(metavar="URI", help="Of a directory of LoRA adapters.", rich_help_panel=STORAGE)
    ] = None,
    node_cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP", help="Keep the engine on these nodes' disks. Repeatable.", rich_help_panel=STORAGE
        ),
    ] = None,
    canary: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Of a new engine, beside the one of --storage.", rich_help_panel=STORAGE),
    ] = None,
    canary_percent: Annotated[
        int | None, typer.Option(metavar="PERCENT", help="Of the requests that it gets.", rich_help_panel=STORAGE)
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="PRODUCT", help="Such as L4, A100-80GB or H200.", show_default="CPU", rich_help_panel=SCALING
        ),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="Of them, for one replica.", show_default="1", rich_help_panel=SCALING)
    ] = None,
    cpu: Annotated[
        str | None, typer.Option(help="CPUs of one replica.", show_default="4", rich_help_panel=SCALING)
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Such as 16Gi.", show_default="by the engine", rich_help_panel=SCALING)
    ] = None,
    kv_host_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Host memory of one replica for KV blocks that its cache has no room for, on top of --memory's default.",
            show_default="none",
            rich_help_panel=SCALING,
        ),
    ] = None,
    kv_disk_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With --kv-host-bytes: of a node's disk, where those go next.",
            show_default="none",
            rich_help_panel=SCALING,
        ),
    ] = None,
    min_replicas: Annotated[
        int | None,
        typer.Option(help="Always there.", show_default="0 where the profile reaches it", rich_help_panel=SCALING),
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="At most.", show_default="4", rich_help_panel=SCALING)
    ] = None,
    longest_stream: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS", help="That the longest answer takes.", show_default="540", rich_help_panel=SCALING
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="That clients name (external).", rich_help_panel=SCALING)] = None,
    gateway: Annotated[
        str | None,
        typer.Option(metavar="NAMESPACE/NAME", help="A Gateway to route from (external).", rich_help_panel=SCALING),
    ] = None,
    prometheus: Annotated[
        str | None, typer.Option(metavar="URL", help="That autoscalers ask.", rich_help_panel=SCALING)
    ] = None,
    ttft: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="To a first token, as promised: warns where a start breaks it.",
            rich_help_panel=COLD,
        ),
    ] = None,
    node_provision: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Until a node is there.", show_default="180", rich_help_panel=COLD),
    ] = None,
    image_pull: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Of the image, onto a new node.", show_default="120", rich_help_panel=COLD
        ),
    ] = None,
    storage_bandwidth: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="A second, from storage.", show_default="100MB", rich_help_panel=COLD),
    ] = None,
    load_bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="A second, from a node's disk into place.", show_default="1GB", rich_help_panel=COLD
        ),
    ] = None,
    warm_up: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Until full speed.", show_default="20", rich_help_panel=COLD),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check manifests in place of rendering them.", rich_help_panel=CHECKING)
    ] = False,
    crds: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="CRDs to hold objects to: YAML, or their schemas as JSON. Repeatable; the first that knows a kind wins.",
            show_default="what installed packages know",
            rich_help_panel=CHECKING,
        ),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Apply what was rendered, server-side.", rich_help_panel=CHECKING)
    ] = False,
    context: Annotated[
        str | None, typer.Option(help="Of the kubeconfig.", show_default="its current one", rich_help_panel=CHECKING)
    ] = None,
) -> None:
    """Render, check and apply Kubernetes manifests that serve an engine by KServe.

    Every probe, deadline and timeout follows from what a cold start takes, and every object is checked before it is
    written: structure, rules, KServe's webhooks. trierarch deploy --check FILE... checks manifests of any origin.
    """
    checker = _checker(crds)
    if check:
        _check_files(checker, files or [])
        return
    if files:
        raise ConfigError(f"{files[0]} is named without --check; say --check to check it")
    if engine is None or output is None:
        raise ConfigError(f"--{'engine' if engine is None else 'output'} is missing; say where it is")
    given = {
        "profile": profile,
        "name": name,
        "namespace": namespace,
        "image": image,
        "kserve_version": kserve_version,
        "storage.uri": storage,
        "storage.adapters": adapters,
        "storage.node_cache": node_cache,
        "canary.uri": canary,
        "canary.percent": canary_percent,
        "gpu.product": gpu,
        "gpu.count": gpus,
        "resources.cpu": cpu,
        "resources.memory": memory,
        "kv_tiers.host_bytes": _bytes(kv_host_bytes),
        "kv_tiers.disk_bytes": _bytes(kv_disk_bytes),
        "scale.min_replicas": min_replicas,
        "scale.max_replicas": max_replicas,
        "streams.longest": longest_stream,
        "access.host": host,
        "access.gateway": gateway,
        "monitoring.prometheus": prometheus,
        "cold_start.ttft_objective": ttft,
        "cold_start.node_provision": node_provision,
        "cold_start.image_pull": image_pull,
        "cold_start.storage_bandwidth": _bytes(storage_bandwidth),
        "cold_start.load_bandwidth": _bytes(load_bandwidth),
        "cold_start.warm_up": warm_up,
    }
    rendering = _render(engine, spec, given)
    _show(rendering)
    _judge(checker, rendering.objects)
    from trierarch.orchestrator.manifest_directory import write_manifests

    write_manifests(rendering.files(), output)
    _tell_next(rendering, output, is_applied=apply)
    if apply:
        _apply(rendering, context)


def _render(engine: Path, spec: Path | None, given: dict[str, Any]) -> Rendering:
    from trierarch.builder.manifest import EngineManifest
    from trierarch.kserve.render import render
    from trierarch.orchestrator.deployment_spec import read_spec

    # Not verified: it is deployed elsewhere, to machines that this one need not be like.
    return render(read_spec(spec, given), EngineManifest.load(engine))


def _show(rendering: Rendering) -> None:
    from trierarch.kserve.cold_start import warnings
    from trierarch.kserve.gpu import memory_of
    from trierarch.kserve.memory import replica_budget
    from trierarch.orchestrator.console import OUT, warn
    from trierarch.orchestrator.deployment_tables import cold_start_table, memory_line

    spec = rendering.spec
    available = None if spec.gpu is None else memory_of(spec.gpu) * spec.gpu.count
    what = "" if spec.gpu is None else f"{spec.gpu.count} × {spec.gpu.product}"
    OUT.print(cold_start_table(rendering.budget))
    OUT.print(memory_line(replica_budget(spec, rendering.engine), available, what), soft_wrap=True)
    for warning in warnings(spec, rendering.engine, rendering.budget):
        warn(warning)


def _judge(checker: Checker, objects: tuple[Resource, ...]) -> None:
    """Say what was found, and fail on what a cluster would refuse.

    Raises:
        Exit: there are errors; nothing is written.
    """
    if _show_report(checker, list(objects)).errors:
        raise typer.Exit(1)


def _check_files(checker: Checker, files: list[Path]) -> None:
    from trierarch.orchestrator.manifest_directory import read_manifests

    if not files:
        raise ConfigError("--check has nothing to check; name files or directories of manifests")
    objects = read_manifests(files)
    if _show_report(checker, objects).errors:
        raise typer.Exit(1)


def _show_report(checker: Checker, objects: list[Resource]) -> Report:
    from trierarch.orchestrator.console import ERR, say
    from trierarch.orchestrator.deployment_tables import findings_lines, sources_line

    report = checker.check(objects)
    for line in findings_lines(report):
        ERR.print(line, soft_wrap=True)
    say(f"{report.num_objects} objects checked ({sources_line(checker, objects)}), {len(report.errors)} errors")
    return report


def _checker(directories: list[Path] | None) -> Checker:
    from trierarch.kserve.checks.check import Checker
    from trierarch.kserve.checks.crd_schemas import read_crds
    from trierarch.kserve.checks.package_schemas import PackageSchemas

    schemas = tuple(schema for directory in directories or () for schema in read_crds(directory))
    return Checker(schemas, PackageSchemas())


def _tell_next(rendering: Rendering, output: Path, *, is_applied: bool) -> None:
    from trierarch.kserve.profiles import notes
    from trierarch.orchestrator.console import OUT, say

    OUT.print(f"[bold cyan]{output}[/]: {', '.join(rendering.files())}", soft_wrap=True)
    for note in notes(rendering.spec):
        say(note)
    if not is_applied:
        say(f"apply it with: kubectl apply -k {output}")


def _apply(rendering: Rendering, context: str | None) -> None:
    from trierarch.orchestrator.cluster import apply
    from trierarch.orchestrator.console import ERR, say

    objects = rendering.objects
    with ERR.status("applying") as status:
        done: list[str] = []

        def on_applied(found: Resource, is_new: bool) -> None:
            done.append(found["kind"])
            status.update(f"applying: {len(done)} of {len(objects)}")
            say(f"{'created' if is_new else 'applied'} {found['kind']}/{found['metadata']['name']}")

        apply(objects, context, on_applied)
    spec = rendering.spec
    kind = "llminferenceservice" if spec.profile == "llm" else "inferenceservice"
    say(f"watch it with: kubectl get {kind} {spec.name} --namespace {spec.namespace} --watch")


def _bytes(text: str | None) -> int | None:
    from trierarch.orchestrator.sizes import parse_size

    return None if text is None else parse_size(text)
