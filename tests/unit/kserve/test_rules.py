"""Rules that are in no schema: each is broken alone, in an object that is right otherwise."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.deployments import checker_for, small_spec, weighty_engine
from trierarch.kserve.checks.check import Checker
from trierarch.kserve.checks.finding import Finding, Severity
from trierarch.kserve.checks.metadata_rules import metadata_findings
from trierarch.kserve.checks.traps import startup_traps
from trierarch.kserve.checks.webhook import webhook_findings
from trierarch.kserve.objects.resource import Resource
from trierarch.kserve.render import render
from trierarch.kserve.spec import Profile

Change = Callable[[dict[str, Any]], Any]
ANNOTATIONS = "metadata.annotations"


def objects_of(profile: Profile, **changes: Any) -> list[Resource]:
    return [deepcopy(found) for found in render(small_spec(profile=profile, **changes), weighty_engine()).objects]


def the(kind: str, objects: list[Resource]) -> Resource:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def service_of(profile: Profile, **changes: Any) -> Resource:
    return the("InferenceService", objects_of(profile, **changes))


def canary(**predictor: Any) -> dict[str, Any]:
    return {"predictor": {"name": "new", "model": {"storageUri": "pvc://a"}} | predictor, "trafficPercent": 10}


def knative(change: Change) -> tuple[Profile, Change]:
    return Profile.KNATIVE, change


def keda(change: Change) -> tuple[Profile, Change]:
    return Profile.KEDA, change


def on_hpa(**predictor: Any) -> tuple[Profile, Change]:
    def change(service: dict[str, Any]) -> None:
        service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] = "hpa"
        del service["spec"]["predictor"]["autoScaling"]
        service["spec"]["predictor"] |= predictor

    return Profile.KEDA, change


def predictor(**fields: Any) -> Change:
    return lambda service: service["spec"]["predictor"].update(fields)


def model(**fields: Any) -> Change:
    return lambda service: service["spec"]["predictor"]["model"].update(fields)


def annotation(name: str, value: str) -> Change:
    return lambda service: service["metadata"]["annotations"].update({f"serving.kserve.io/{name}": value})


def metrics(*found: dict[str, Any]) -> Change:
    return predictor(autoScaling={"metrics": list(found)})


def canaries(*found: dict[str, Any]) -> Change:
    return lambda service: service["spec"].update(canary=list(found))


REFUSED: dict[str, tuple[tuple[Profile, Change], str]] = {
    "a name that starts with a digit": (keda(lambda found: found["metadata"].update(name="1a")), "metadata.name"),
    "an autoscaler that is none": (keda(annotation("autoscalerClass", "vpa")), ANNOTATIONS),
    "a mode that is none": (keda(annotation("deploymentMode", "Fast")), ANNOTATIONS),
    "no predictor": (keda(lambda found: found["spec"].pop("predictor")), "spec.predictor"),
    "no implementation": (keda(lambda found: found["spec"]["predictor"].pop("model")), "spec.predictor"),
    "two implementations": (keda(predictor(sklearn={"storageUri": "s3://a"})), "spec.predictor"),
    "a name of the container": (keda(model(name="mine")), "spec.predictor.model.name"),
    "PYTHONPATH": (keda(model(env=[{"name": "PYTHONPATH", "value": "/"}])), "spec.predictor"),
    "minReplicas below 0": (keda(predictor(minReplicas=-1)), "spec.predictor.minReplicas"),
    "maxReplicas below 0": (keda(predictor(maxReplicas=-1)), "spec.predictor.maxReplicas"),
    "min above max": (keda(predictor(minReplicas=9)), "spec.predictor.minReplicas"),
    "containerConcurrency below 0": (
        knative(predictor(containerConcurrency=-1)),
        "spec.predictor.containerConcurrency",
    ),
    "a logger's mode": (keda(predictor(logger={"mode": "some"})), "spec.predictor.logger.mode"),
    "KPA on cpu": (knative(predictor(scaleMetric="cpu")), "spec.predictor.scaleMetric"),
    "KPA on half a request": (knative(predictor(scaleMetric="rps", scaleTarget=0)), "spec.predictor.scaleTarget"),
    "a strategy in Knative": (
        knative(predictor(deploymentStrategy={"type": "Recreate"})),
        "spec.predictor.deploymentStra",
    ),
    "HPA on concurrency": (on_hpa(scaleMetric="concurrency"), "spec.predictor.scaleMetric"),
    "HPA over 100 %": (on_hpa(scaleTarget=101), "spec.predictor.scaleTarget"),
    "HPA on a query": (
        on_hpa(autoScaling={"metrics": [{"type": "External"}]}),
        "spec.predictor.autoScaling.metrics[0]",
    ),
    "KEDA with scaleMetric": (keda(predictor(scaleMetric="cpu")), "spec.predictor.scaleMetric"),
    "KEDA on no query": (
        keda(metrics({"type": "External", "external": {"metric": {}, "target": {"value": "1"}}})),
        "spec.predictor.autoScaling.metrics[0]",
    ),
    "KEDA without a value": (
        keda(metrics({"type": "External", "external": {"metric": {"query": "up"}, "target": {"averageValue": "1"}}})),
        "spec.predictor.autoScaling.metrics[0]",
    ),
    "KEDA on cpu by value": (
        keda(metrics({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue"}}})),
        "spec.predictor.autoScaling.metrics[0]",
    ),
    "KEDA on a byte of memory": (
        keda(
            metrics(
                {
                    "type": "Resource",
                    "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1"}},
                }
            )
        ),
        "spec.predictor.autoScaling.metrics[0]",
    ),
    "a canary list in Knative": (knative(canaries(canary())), "spec.canary"),
    "a canary without a name": (keda(canaries(canary(name=""))), "spec.canary[0].predictor.name"),
    "two canaries of a name": (keda(canaries(canary(), canary())), "spec.canary[1].predictor.name"),
    "a canary that scales": (keda(canaries(canary(maxReplicas=2))), "spec.canary[0].predictor.maxReplicas"),
    "a canary larger than the stable": (keda(canaries(canary(minReplicas=3))), "spec.canary[0].predictor.minReplicas"),
    "canaries of more than all": (
        keda(canaries(canary() | {"trafficPercent": 60}, canary(name="newer") | {"trafficPercent": 60})),
        "spec.canary",
    ),
    "storageUri and storageUris": (keda(predictor(storageUris=[{"uri": "s3://a"}])), "spec.predictor.storageUris"),
    "a mount at the root": (
        keda(predictor(storageUris=[{"uri": "s3://a", "mountPath": "/"}], model={})),
        "spec.predictor.storageUris[0].mountPath",
    ),
    "mounts without a common folder": (
        keda(
            predictor(
                storageUris=[{"uri": "s3://a", "mountPath": "/a/x"}, {"uri": "s3://b", "mountPath": "/b/x"}], model={}
            )
        ),
        "spec.predictor.storageUris",
    ),
    "workers that are scaled": (
        keda(predictor(workerSpec={}, model={"storageUri": "pvc://a"})),
        ANNOTATIONS,
    ),
    "workers from a bucket": (
        keda(lambda found: (annotation("autoscalerClass", "none")(found), predictor(workerSpec={})(found))),
        "spec.predictor.model.storageUri",
    ),
    "confidential from nowhere": (
        keda(predictor(model={"confidential": {"enabled": True}})),
        "spec.predictor.model.confidential",
    ),
}


@pytest.mark.parametrize("broken", REFUSED)
def test_what_kserves_webhook_refuses_is_found(broken: str) -> None:
    (profile, change), path = REFUSED[broken]
    service = service_of(profile)
    assert not list(webhook_findings(service))
    change(service)
    found = list(webhook_findings(service))
    assert found
    assert any(finding.path.startswith(path) for finding in found), [str(finding) for finding in found]


def check(objects: list[Resource]) -> tuple[Finding, ...]:
    return checker_for().check(objects).findings


TRAPS: dict[str, tuple[tuple[Profile, Change], str]] = {
    "zero on an HPA": (on_hpa(minReplicas=0), "KServe makes it 1"),
    "zero on KEDA": (keda(predictor(minReplicas=0)), "nothing holds requests"),
    "metrics in Knative": (knative(predictor(autoScaling={"metrics": []})), "ignored in Knative mode"),
    "policies on KEDA": (
        keda(
            lambda found: found["spec"]["predictor"]["autoScaling"]["behavior"]["scaleDown"].update(selectPolicy="Max")
        ),
        "stabilizationWindowSeconds on, and no more",
    ),
    "no grace": (keda(lambda found: found["spec"]["predictor"].pop("terminationGracePeriodSeconds")), "is 30"),
    "no timeout": (keda(lambda found: found["spec"]["predictor"].pop("timeout")), "is 60"),
    "no mode": (keda(lambda found: found["metadata"].pop("annotations")), "the cluster's default"),
    "a runtime that is elsewhere": (keda(model(runtime="other")), "must be in the cluster"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_is_accepted_and_not_done_is_a_warning(trap: str) -> None:
    (profile, change), told = TRAPS[trap]
    objects = objects_of(profile)
    change(the("InferenceService", objects))
    warnings = [found.message for found in check(objects) if found.severity is Severity.WARNING]
    assert any(told in message for message in warnings), warnings


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda spec: spec.update(disabled=True), "is disabled"),
        (lambda spec: spec.update(multiModel=True), "many models"),
        (
            lambda spec: spec.update(supportedModelFormats=[{"name": "onnx"}]),
            "does not support the format 'tensorrt-llm'",
        ),
        (lambda spec: spec.update(protocolVersions=["v1"]), "does not speak the protocol v2"),
    ],
)
def test_a_runtime_that_would_not_be_chosen_is_an_error(change: Change, told: str) -> None:
    objects = objects_of(Profile.KEDA)
    change(the("ClusterServingRuntime", objects)["spec"])
    assert any(told in found.message for found in check(objects) if found.severity is Severity.ERROR)


def test_a_format_of_ones_own_wants_its_protocol_said() -> None:
    objects = objects_of(Profile.KEDA)
    del the("InferenceService", objects)["spec"]["predictor"]["model"]["protocolVersion"]
    assert any("does not speak the protocol v1" in found.message for found in check(objects))


def test_no_runtime_is_chosen_by_itself() -> None:
    objects = objects_of(Profile.KEDA)
    del the("InferenceService", objects)["spec"]["predictor"]["model"]["runtime"]
    assert any("none here is chosen" in found.message for found in check(objects))
    the("ClusterServingRuntime", objects)["spec"]["supportedModelFormats"][0]["autoSelect"] = True
    assert not any("none here is chosen" in found.message for found in check(objects))


def test_a_namespaces_own_runtime_wins() -> None:
    objects = objects_of(Profile.KEDA)
    own = deepcopy(the("ClusterServingRuntime", objects)) | {"kind": "ServingRuntime"}
    own["metadata"]["namespace"] = "models"
    own["spec"]["disabled"] = True
    assert any("is disabled" in found.message for found in check([*objects, own]))
    own["metadata"]["namespace"] = "others"
    assert not any("is disabled" in found.message for found in check([*objects, own]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda spec: spec["containers"][0].update(lifecycle={"preStop": {"exec": {"command": ["sleep", "1"]}}}),
            "lifecycle",
        ),
        (lambda spec: spec["containers"][0]["ports"].append({"containerPort": 8001, "name": "h2c"}), "one port"),
        (lambda spec: spec["containers"][0]["ports"][0].update(name="http"), "port names"),
        (
            lambda spec: spec["containers"].append(
                {"name": "beside", "livenessProbe": {"httpGet": {"port": 9, "path": "/"}}}
            ),
            "only the container with the port",
        ),
        (
            lambda spec: spec["containers"][0].update(livenessProbe={"httpGet": {"port": 8000, "path": "/"}}),
            "one port, 9000",
        ),
    ],
)
def test_what_knative_refuses_of_a_runtime_is_found(change: Change, told: str) -> None:
    objects = objects_of(Profile.KNATIVE)
    change(the("ClusterServingRuntime", objects)["spec"])
    assert any(told in str(found) for found in check(objects)), [str(found) for found in check(objects)]


def test_what_knative_refuses_of_a_pod_is_found() -> None:
    objects = objects_of(Profile.KNATIVE)
    the("InferenceService", objects)["spec"]["predictor"]["terminationGracePeriodSeconds"] = 600
    errors = [str(found) for found in check(objects) if found.severity is Severity.ERROR]
    assert errors == ["InferenceService/tiny spec.predictor.terminationGracePeriodSeconds: Knative refuses it"]


METADATA: dict[str, tuple[Change, str]] = {
    "no kind": (lambda found: found.pop("kind"), "kind"),
    "no metadata": (lambda found: found.pop("metadata"), "metadata"),
    "an upper-case name": (lambda found: found["metadata"].update(name="Tiny"), "metadata.name"),
    "a long name": (lambda found: found["metadata"].update(name="a" * 254), "metadata.name"),
    "a namespace with a dot": (lambda found: found["metadata"].update(namespace="a.b"), "metadata.namespace"),
    "a label's value": (lambda found: found["metadata"]["labels"].update(a="no spaces"), "metadata.labels.a"),
    "a number as a label": (lambda found: found["metadata"]["labels"].update(a=1), "metadata.labels.a"),
    "a label's key": (lambda found: found["metadata"]["labels"].update({"A/b/c": "x"}), "metadata.labels"),
    "a true annotation": (lambda found: found["metadata"].update(annotations={"a": True}), "metadata.annotations.a"),
    "large annotations": (
        lambda found: found["metadata"].update(annotations={"a": "x" * 300_000}),
        "metadata.annotations",
    ),
    "a selector": (lambda found: found["spec"]["selector"]["matchLabels"].update(a="?"), "spec.selector.matchLabels.a"),
}


@pytest.mark.parametrize("broken", METADATA)
def test_metadata_that_kubernetes_refuses_is_found(broken: str) -> None:
    change, path = METADATA[broken]
    budget = the("PodDisruptionBudget", objects_of(Profile.KEDA))
    assert not list(metadata_findings(budget))
    change(budget)
    assert path in {found.path for found in metadata_findings(budget)}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda container: container["resources"]["limits"].update(memory="16GB"), "resources.limits.memory"),
        (lambda container: container["resources"]["requests"].update(cpu=True), "resources.requests.cpu"),
        (lambda container: container["env"].append({"name": "1=2", "value": "x"}), "env[1].name"),
        (lambda container: container["env"].append({"name": "A", "value": 1}), "env[1].value"),
    ],
)
def test_quantities_and_variables_are_read(change: Change, path: str) -> None:
    runtime = the("ClusterServingRuntime", objects_of(Profile.KEDA))
    assert not list(metadata_findings(runtime))
    change(runtime["spec"]["containers"][0])
    assert [found.path for found in metadata_findings(runtime)] == [f"spec.containers[0].{path}"]


def test_what_belongs_to_the_cluster_has_no_namespace() -> None:
    runtime = the("ClusterServingRuntime", objects_of(Profile.KEDA))
    runtime["metadata"]["namespace"] = "models"
    assert "belongs to the whole cluster" in next(metadata_findings(runtime)).message


def test_secrets_in_plain_text_are_errors_wherever_they_stand() -> None:
    objects = objects_of(Profile.KEDA)
    runtime, service = the("ClusterServingRuntime", objects), the("InferenceService", objects)
    runtime["spec"]["containers"][0]["env"].append({"name": "HF_TOKEN", "value": "hf_abcdefghijklmnopqrstuvwx"})
    service["spec"]["predictor"]["model"]["storageUri"] = "s3://key:hunter2@bucket/engine"
    errors = [found for found in check(objects) if found.severity is Severity.ERROR]
    assert len(errors) == 2
    assert not any("hunter2" in str(found) or "hf_abc" in str(found) for found in errors)


def test_a_start_that_a_deployment_does_not_allow_is_told() -> None:
    container = {"name": "a", "startupProbe": {"periodSeconds": 10, "failureThreshold": 100}}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "a"},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    (found,) = startup_traps(deployment)
    assert "allows 1000 s, and the Deployment's deadline is 600" in found.message
    deployment["spec"]["progressDeadlineSeconds"] = 1200  # type: ignore[index]
    assert not list(startup_traps(deployment))


def test_without_schemas_the_rules_still_hold() -> None:
    objects = objects_of(Profile.KEDA)
    the("InferenceService", objects)["spec"]["predictor"]["minReplicas"] = 9
    assert any("above maxReplicas" in found.message for found in Checker().check(objects).errors)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything in `value`, itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in ((*path, key), *places(item, (*path, key)))]


RENDERED = {profile: objects_of(profile) for profile in (Profile.KNATIVE, Profile.KEDA)}


@given(st.data(), st.sampled_from(list(RENDERED)), values)
@settings(deadline=None)
def test_whatever_a_file_holds_there_is_an_answer(data: st.DataObject, profile: Profile, value: Any) -> None:
    objects = deepcopy(RENDERED[profile])
    changed = data.draw(st.sampled_from(objects))
    *way, last = data.draw(st.sampled_from(places(changed)))
    holder: Any = changed
    for key in way:
        holder = holder[key]
    holder[last] = value
    beside = [found for found in objects if found is not changed and found["kind"].startswith(("Infer", "Cluster"))]
    report = Checker().check([changed, *beside])
    assert report.num_objects == 1 + len(beside)
    assert all(isinstance(str(found), str) for found in report.findings)
    Checker().source(changed)
