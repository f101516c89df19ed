from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.deployments import checker_for, small_spec, weighty_engine
from support.named_metrics import OTHERS, metrics_in, our_metrics
from trierarch.builder.manifest import Lora
from trierarch.kserve.checks.finding import Severity
from trierarch.kserve.cold_start import cold_start_budget
from trierarch.kserve.objects.dashboard import dashboard_document
from trierarch.kserve.objects.llm_inference_service import SCORERS
from trierarch.kserve.objects.monitoring import alerts
from trierarch.kserve.objects.resource import Resource
from trierarch.kserve.objects.signals import kv_query, waiting_query
from trierarch.kserve.quantity import quantity_bytes
from trierarch.kserve.render import Rendering, render
from trierarch.kserve.spec import DeploySpec, KServeVersion, Profile
from trierarch.orchestrator.cli import app

storages = st.one_of(
    st.fixed_dictionaries(
        {"uri": st.sampled_from(["pvc://engines/tiny", "oci+native://r.example/e:1", "s3://bucket/e", "hf://org/e"])},
        optional={
            "adapters": st.sampled_from(["pvc://shelf", "pvc://shelf/deep/er"]),
            "service_account": st.just("reader"),
        },
    ),
    st.fixed_dictionaries({"uri": st.just("oci://r.example/e:1")}),
)
gpus = st.none() | st.fixed_dictionaries(
    {"product": st.sampled_from(["L4", "A100-80GB", "H200"])},
    optional={"node_selector": st.just({"pool": "gpu"}), "tolerate": st.booleans()},
)


@st.composite
def specs(draw: st.DrawFn) -> DeploySpec:
    """Everything that may be asked for together."""
    profile = draw(st.sampled_from(Profile))
    least = draw(st.integers(0 if profile.reaches_zero else 1, 3))
    cold = {"ttft_objective": draw(st.none() | st.floats(1, 1000)), "margin": draw(st.floats(1, 5))}
    changes: dict[str, Any] = {
        "profile": profile,
        "kserve_version": draw(st.sampled_from(KServeVersion)),
        "storage": draw(storages),
        "gpu": draw(gpus),
        "scale": {"min_replicas": least, "max_replicas": draw(st.integers(max(1, least), 10))},
        "cold_start": cold,
        "streams": {"longest": draw(st.integers(1, 4000)), "deregister": draw(st.integers(1, 60))},
        "access": {
            "gateway": draw(st.none() | st.just("gateways/main")),
            "api_keys": draw(st.none() | st.just({"secret": "keys", "key": "gateway"})),
        },
        "kv_tiers": draw(
            st.sampled_from([{}, {"host_bytes": 1 << 30}, {"host_bytes": 1 << 30, "disk_bytes": 1 << 33}])
        ),
        "image_pull_secrets": draw(st.lists(st.just("pull"), max_size=1)),
        "env": draw(st.dictionaries(st.sampled_from(["LOG_LEVEL", "OMP_NUM_THREADS"]), st.sampled_from(["1", "info"]))),
        "secret_env": draw(st.sampled_from([{}, {"API_KEY": {"secret": "keys", "key": "api"}}])),
    }
    if profile in (Profile.KNATIVE, Profile.KEDA) and draw(st.booleans()):
        changes["canary"] = {"uri": "oci+native://r.example/e:2", "percent": draw(st.integers(0, 100))}
    return small_spec(**changes)


CHECKERS = {version: checker_for(version) for version in KServeVersion}


@given(specs(), st.booleans())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_that_is_rendered_would_be_refused(spec: DeploySpec, takes_adapters: bool) -> None:
    has_adapters = spec.storage.adapters is not None
    engine = weighty_engine(lora=Lora(max_rank=8, max_adapters=2) if takes_adapters or has_adapters else None)
    rendering = render(spec, engine)

    report = CHECKERS[spec.kserve_version].check(rendering.objects)
    assert not report.errors, [str(error) for error in report.errors]
    warned = {found.path for found in report.findings if found.severity is Severity.WARNING}
    assert warned <= {"spec.predictor.timeout"}, "only Knative's own limit is told twice"
    _assert_pods_hold_together(rendering)


def _assert_pods_hold_together(rendering: Rendering) -> None:
    budget = cold_start_budget(rendering.spec, rendering.engine)
    for pod in _pods(rendering.objects):
        volumes = {volume["name"] for volume in pod["volumes"]}
        ports = [port["containerPort"] for container in pod["containers"] for port in container.get("ports", [])]
        assert len(set(ports)) == len(ports)
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["securityContext"]["runAsNonRoot"] is True
        startup = pod["containers"][0]["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= budget.container


def _pods(objects: tuple[Resource, ...]) -> Iterator[dict[str, Any]]:
    for found in objects:
        if found["kind"] == "ClusterServingRuntime":
            yield found["spec"]
        if found["kind"] == "LLMInferenceService":
            yield found["spec"]["template"]


def rendered(profile: Profile, **changes: Any) -> dict[str, Resource]:
    """Kind -> object."""
    return {found["kind"]: found for found in render(small_spec(profile=profile, **changes), weighty_engine()).objects}


@pytest.mark.parametrize("profile", [Profile.KEDA, Profile.EXTERNAL, Profile.LLM])
def test_pods_outlive_their_longest_stream(profile: Profile) -> None:
    objects = rendered(profile, streams={"longest": 900, "deregister": 20})
    holder = objects["LLMInferenceService"]["spec"]["template"] if profile is Profile.LLM else None
    predictor = holder or objects["InferenceService"]["spec"]["predictor"]
    (server,) = next(_pods(tuple(objects.values())))["containers"]

    assert predictor["terminationGracePeriodSeconds"] > 20 + 900
    assert "--drain-timeout=900" in server["args"]
    assert server["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "20"]


def test_knative_gets_one_port_and_nothing_it_refuses() -> None:
    objects = rendered(Profile.KNATIVE)
    (server,) = objects["ClusterServingRuntime"]["spec"]["containers"]
    assert [port["containerPort"] for port in server["ports"]] == [9000]
    assert "lifecycle" not in server
    assert "terminationGracePeriodSeconds" not in objects["InferenceService"]["spec"]["predictor"]


def test_a_service_that_reaches_zero_is_woken_by_what_lives_at_zero() -> None:
    objects = rendered(Profile.EXTERNAL)
    scaled, route, service = (objects[kind] for kind in ("ScaledObject", "InterceptorRoute", "InferenceService"))
    assert scaled["spec"]["minReplicaCount"] == 0
    assert scaled["spec"]["triggers"][0]["metadata"]["interceptorRoute"] == route["metadata"]["name"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == route["spec"]["target"]["service"] == "tiny-predictor"
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "external"
    # KServe's own route would lead past the interceptor, to nobody.
    assert service["metadata"]["labels"]["networking.kserve.io/visibility"] == "cluster-local"


def test_waits_cover_a_cold_start() -> None:
    budget = cold_start_budget(small_spec(), weighty_engine())
    deadline = f"{budget.deadline}s"
    external, knative, llm = (rendered(profile) for profile in (Profile.EXTERNAL, Profile.KNATIVE, Profile.LLM))

    assert external["InterceptorRoute"]["spec"]["timeouts"]["readiness"] == deadline
    assert external["ScaledObject"]["spec"]["initialCooldownPeriod"] == budget.deadline
    assert external["ScaledObject"]["spec"]["cooldownPeriod"] >= budget.deadline
    annotations = knative["InferenceService"]["metadata"]["annotations"]
    assert annotations["serving.knative.dev/progress-deadline"] == deadline
    config = llm["LLMInferenceService"]["spec"]["router"]["scheduler"]["config"]["inline"]
    assert config["flowControl"]["noEndpointRequestTTL"] == deadline


def test_scaling_follows_the_queue_first_then_the_cache_and_no_duty_cycle() -> None:
    keda = rendered(Profile.KEDA)["InferenceService"]["spec"]["predictor"]["autoScaling"]["metrics"]
    external = rendered(Profile.EXTERNAL)["ScaledObject"]["spec"]["triggers"]
    spec = small_spec()
    wanted = [waiting_query(spec), kv_query(spec)]
    assert [metric["external"]["metric"]["query"] for metric in keda] == wanted
    assert [trigger["metadata"]["query"] for trigger in external[1:]] == wanted
    assert 'request_type="waiting"' in wanted[0]


def test_the_picker_follows_adapters_where_the_engine_takes_them() -> None:
    def plugins(lora: Lora | None) -> list[str]:
        found = render(small_spec(profile="llm"), weighty_engine(lora=lora)).objects
        (service,) = (each for each in found if each["kind"] == "LLMInferenceService")
        return [plugin["type"] for plugin in service["spec"]["router"]["scheduler"]["config"]["inline"]["plugins"]]

    assert set(SCORERS) <= set(plugins(Lora()))
    assert "lora-affinity-scorer" not in plugins(None)


def test_an_llm_service_calls_the_model_as_its_gateway_does() -> None:
    objects = render(small_spec(profile="llm", name="service"), weighty_engine(name="llama")).objects
    (service,) = (found for found in objects if found["kind"] == "LLMInferenceService")
    assert service["spec"]["model"]["name"] == "llama"


def test_knative_keeps_an_idle_pod_no_longer_than_it_may() -> None:
    spec = small_spec(profile="knative", cold_start={"node_provision": 9000})
    annotations = rendered(Profile.KNATIVE, cold_start={"node_provision": 9000})["InferenceService"]["metadata"][
        "annotations"
    ]
    assert annotations["autoscaling.knative.dev/scale-to-zero-pod-retention-period"] == "3600s"
    assert cold_start_budget(spec, weighty_engine()).deadline > 3600


def test_both_labels_of_the_engine_type_are_on_the_pods() -> None:
    labels = rendered(Profile.LLM)["LLMInferenceService"]["spec"]["labels"]
    assert set(labels.values()) == {"triton-tensorrt-llm"}
    assert set(labels) == {"inference.networking.k8s.io/engine-type", "llm-d.ai/engine-type"}


def test_before_021_an_llm_service_has_fixed_replicas() -> None:
    old = rendered(Profile.LLM)["LLMInferenceService"]["spec"]
    new = rendered(Profile.LLM, kserve_version="0.21")["LLMInferenceService"]["spec"]
    assert old["replicas"] == 1
    assert "scaling" not in old
    assert new["scaling"]["keda"]["triggers"][0]["metadata"]["query"] == waiting_query(small_spec())


def test_a_canary_is_a_revision_in_knative_and_a_predictor_in_standard_mode() -> None:
    canary = {"uri": "oci+native://r.example/e:2", "percent": 10}
    knative = rendered(Profile.KNATIVE, canary=canary)["InferenceService"]["spec"]
    assert knative["predictor"]["model"]["storageUri"] == canary["uri"]
    assert knative["predictor"]["canaryTrafficPercent"] == 10

    standard = rendered(Profile.KEDA, canary=canary)["InferenceService"]["spec"]
    assert standard["predictor"]["model"]["storageUri"] == small_spec().storage.uri
    (entry,) = standard["canary"]
    assert (entry["predictor"]["model"]["storageUri"], entry["trafficPercent"]) == (canary["uri"], 10)


def test_adapters_lie_where_the_server_looks_for_them() -> None:
    storage = {"uri": "pvc://engines/tiny", "adapters": "pvc://shelf/mine"}
    keda = rendered(Profile.KEDA, storage=storage)
    mounts = {
        source["uri"]: source["mountPath"] for source in keda["InferenceService"]["spec"]["predictor"]["storageUris"]
    }
    triton = keda["ClusterServingRuntime"]["spec"]["containers"][0]
    assert triton["command"][-1] == mounts["pvc://engines/tiny"]
    assert f"--adapters={mounts['pvc://shelf/mine']}" in triton["args"]

    pod = rendered(Profile.LLM, storage=storage)["LLMInferenceService"]["spec"]["template"]
    (mount,) = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "adapters"]
    assert mount["subPath"] == "mine"
    assert f"--adapters={mount['mountPath']}" in pod["containers"][0]["args"]
    assert any(volume.get("persistentVolumeClaim", {}).get("claimName") == "shelf" for volume in pod["volumes"])


def test_a_node_cache_matches_its_service() -> None:
    objects = rendered(Profile.KEDA, storage={"uri": "s3://bucket/tiny", "node_cache": ["gpu-nodes"]})
    cache = objects["LocalModelCache"]["spec"]
    assert cache["sourceModelUri"] == objects["InferenceService"]["spec"]["predictor"]["model"]["storageUri"]
    assert cache["nodeGroups"] == ["gpu-nodes"]


@pytest.mark.parametrize("profile", Profile)
def test_options_are_ones_that_the_server_has(profile: Profile) -> None:
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    known = {option for parameter in serve.params for option in parameter.opts}
    objects = rendered(
        profile,
        storage={"uri": "pvc://engines", "adapters": "pvc://shelf"},
        access={"api_keys": {"secret": "keys", "key": "gateway"}},
        kv_tiers={"host_bytes": 1 << 30, "disk_bytes": 1 << 33},
    )
    (pod,) = _pods(tuple(objects.values()))
    (server,) = pod["containers"]
    assert server["command"][:2] == ["trierarch", "serve"]
    assert {argument.split("=")[0] for argument in server["args"]} <= known


def test_keys_of_clients_come_from_a_secret() -> None:
    (pod,) = _pods(tuple(rendered(Profile.KEDA, access={"api_keys": {"secret": "keys", "key": "gateway"}}).values()))
    (server,) = pod["containers"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "api-keys"]
    (mount,) = [mount for mount in server["volumeMounts"] if mount["name"] == "api-keys"]
    (item,) = volume["secret"]["items"]
    assert (volume["secret"]["secretName"], item["key"]) == ("keys", "gateway")
    assert f"--api-keys={mount['mountPath']}/{item['path']}" in server["args"]


@pytest.mark.parametrize("profile", Profile)
def test_blocks_beyond_the_cache_have_their_memory_and_their_disk(profile: Profile) -> None:
    def server(**tiers: int) -> dict[str, Any]:
        (pod,) = _pods(tuple(rendered(profile, kv_tiers=tiers).values()))
        return dict(pod["containers"][0])

    plain, held = server(), server(host_bytes=3 << 30, disk_bytes=8 << 30)
    memory = [each["resources"]["limits"]["memory"] for each in (plain, held)]
    assert quantity_bytes(memory[1]) - quantity_bytes(memory[0]) == 3 << 30
    assert held["resources"]["requests"]["ephemeral-storage"] == "8Gi"
    assert f"--kv-host-bytes={3 << 30}" in held["args"]
    (directory,) = [argument for argument in held["args"] if argument.startswith("--kv-disk-directory=")]
    places = {mount["mountPath"]: mount["name"] for mount in held["volumeMounts"]}
    assert places[directory.partition("=")[2]] == "kv-blocks"
    assert not any("kv" in argument for argument in plain["args"])


@pytest.mark.parametrize("profile", Profile)
def test_every_metric_that_is_named_exists(profile: Profile) -> None:
    spec = small_spec(profile=profile, cold_start={"ttft_objective": 5})
    budget = cold_start_budget(spec, weighty_engine())
    queries = [alert.expression for alert in alerts(spec, budget)]
    queries += [target["expr"] for panel in dashboard_document(spec)["panels"] for target in panel["targets"]]
    queries += [waiting_query(spec), kv_query(spec)]
    named = metrics_in(queries)
    if profile is Profile.LLM:
        picker = yaml.safe_dump(rendered(Profile.LLM)["LLMInferenceService"]["spec"]["router"])
        named |= set(re.findall(r"\b((?:nv|trierarch|vllm)[_:][a-z_:]+)\b", picker))

    assert len(named) > 10
    unknown = {name for name in named - our_metrics() if not OTHERS.fullmatch(name)}
    assert not unknown


def test_who_holds_requests_says_how_many() -> None:
    def held(profile: Profile) -> list[str]:
        panels = dashboard_document(small_spec(profile=profile))["panels"]
        return [target["expr"] for panel in panels if "eld" in panel["title"] for target in panel["targets"]]

    names = {profile: {name for name in metrics_in(held(profile)) if OTHERS.fullmatch(name)} for profile in Profile}
    assert names == {
        Profile.KNATIVE: {"kn_revision_request_queued", "kn_revision_request_active"},
        Profile.KEDA: set(),
        Profile.EXTERNAL: {"interceptor_request_concurrency", "interceptor_request_count_total"},
        Profile.LLM: {
            "llm_d_epp_flow_control_queue_size",
            "llm_d_epp_flow_control_request_queue_duration_seconds_bucket",
        },
    }
    route = rendered(Profile.EXTERNAL)["InterceptorRoute"]["metadata"]
    assert all(f'route_name="{route["name"]}"' in query for query in held(Profile.EXTERNAL) if "clamp" in query)


def test_yaml_reads_back_as_what_was_written() -> None:
    rendering = render(small_spec(profile="external", access={"gateway": "gateways/main"}), weighty_engine())
    files = rendering.files()
    listed = yaml.safe_load(files["kustomization.yaml"])["resources"]
    assert [yaml.safe_load(files[name]) for name in listed] == list(rendering.objects)
    assert sorted(files) == sorted([*listed, "kustomization.yaml"])
