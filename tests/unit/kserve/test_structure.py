"""The schema checks, on small schemas whose answers can be seen, and on the upstream CRDs where a machine has them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.deployments import checker_for, crd_directories, small_spec, weighty_engine
from trierarch.builder.errors import ConfigError
from trierarch.kserve.checks.check import Checker
from trierarch.kserve.checks.crd_schemas import read_crds
from trierarch.kserve.checks.finding import Severity
from trierarch.kserve.checks.package_schemas import PackageSchemas
from trierarch.kserve.checks.schema import Schema
from trierarch.kserve.render import render
from trierarch.kserve.spec import KServeVersion

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["least"],
            "x-kubernetes-validations": [
                {"rule": "self.least <= self.most", "message": "least is above most"},
                {"rule": "self.most == oldSelf.most", "message": "most never changes"},
            ],
            "properties": {
                "least": {"type": "integer"},
                "most": {"type": "integer", "default": 5},
                "amount": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self.matches('^[a-z]+$')"}]},
                "ports": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["number"],
                    "items": {
                        "type": "object",
                        "properties": {"number": {"type": "integer"}, "to": {"type": "string"}},
                    },
                },
                "either": {
                    "type": "object",
                    "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                    "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
                },
            },
        }
    },
}
CHECKER = Checker((Schema("example.com/v1", "Thing", "here", SCHEMA),))


def thing(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "one"}, "spec": spec}


@pytest.mark.parametrize(
    "spec",
    [
        {"least": 1},
        {"least": 5, "amount": 3, "labels": {"any": "thing"}, "free": {"what": ["ever"]}, "name": "abc"},
        {"least": 1, "amount": "3Gi", "ports": [{"number": 1}, {"number": 2}], "either": {"a": "x"}},
    ],
)
def test_what_the_schema_allows_passes(spec: dict[str, Any]) -> None:
    assert not CHECKER.check([thing(**spec)]).findings


@pytest.mark.parametrize(
    ("spec", "path", "told"),
    [
        ({}, "spec", "'least' is a required property"),
        ({"least": 1, "leest": 2}, "spec", "'leest' was unexpected"),
        ({"least": "1"}, "spec.least", "not of type 'integer'"),
        ({"least": 6}, "spec", "least is above most"),  # most is 5 where it is not said
        ({"least": 1, "amount": []}, "spec.amount", "not of type"),
        ({"least": 1, "labels": {"a": 1}}, "spec.labels.a", "not of type 'string'"),
        ({"least": 1, "name": "A1"}, "spec.name", "breaks the rule self.matches"),
        (
            {"least": 1, "ports": [{"number": 1}, {"number": 1, "to": "x"}]},
            "spec.ports",
            "two items have the same number",
        ),
        ({"least": 1, "ports": [{"number": 1, "too": "x"}]}, "spec.ports[0]", "'too' was unexpected"),
        ({"least": 1, "either": {"a": "x", "b": "y"}}, "spec.either", "valid under each of"),
        ({"least": 1, "either": {"a": "x", "c": "y"}}, "spec.either", "'c' was unexpected"),
    ],
)
def test_what_it_does_not_is_found_where_it_is(spec: dict[str, Any], path: str, told: str) -> None:
    (found,) = CHECKER.check([thing(**spec)]).errors
    assert (found.subject, found.path) == ("Thing/one", path)
    assert told in found.message


def test_a_rule_that_reads_what_is_not_there_is_broken() -> None:
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"name": {"type": "string"}}}}}
    schema["properties"]["spec"]["x-kubernetes-validations"] = [{"rule": "size(self.name) == 0"}]  # type: ignore[index]
    checker = Checker((Schema("example.com/v1", "Thing", "here", schema),))
    assert checker.check([thing()]).errors
    assert not checker.check([thing(name="")]).errors


def test_a_kind_that_nobody_knows_is_told_and_no_error() -> None:
    report = Checker().check([thing(least=1)])
    (found,) = report.findings
    assert found.severity is Severity.UNCHECKED
    assert "--crds" in found.message
    assert not report.errors


def test_without_the_tools_that_is_told_and_the_other_rules_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cel" else find(name))
    bad = thing(least=6) | {"metadata": {"name": "One"}}
    report = CHECKER.check([bad])
    (told,) = [found for found in report.findings if found.severity is Severity.UNCHECKED]
    assert "cel are not installed: pip install 'trierarch[kubernetes]'" in told.message
    assert [found.path for found in report.errors] == ["metadata.name"]


def test_an_object_twice_is_an_error() -> None:
    (found,) = CHECKER.check([thing(least=1), thing(least=2)]).errors
    assert "twice" in found.message


def test_core_kinds_are_held_to_kubernetes_own_schemas() -> None:
    budget: dict[str, Any] = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "one"},
        "spec": {"maxUnavailable": 1},
    }
    assert not Checker().check([budget]).findings
    budget["spec"] = {"maxUnavailible": 1}
    (found,) = Checker().check([budget]).errors
    assert "maxUnavailible" in found.message
    (found,) = Checker().check([budget | {"apiVersion": "policy/v9"}]).errors
    assert "has no policy/v9 PodDisruptionBudget" in found.message


def test_crds_are_read_as_yaml_and_as_bare_schemas(tmp_path: Path) -> None:
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com",
            "names": {"kind": "Thing"},
            "versions": [
                {"name": "v1", "served": True, "schema": {"openAPIV3Schema": SCHEMA}},
                {"name": "v1alpha1", "served": False, "schema": {"openAPIV3Schema": SCHEMA}},
            ],
        },
    }
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml/crds.yaml").write_text(yaml.safe_dump_all([crd, {"kind": "Other"}]), encoding="utf-8")
    (tmp_path / "json").mkdir()
    (tmp_path / "json/thing-example.com-v1.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    for folder in ("yaml", "json"):
        schemas = read_crds(tmp_path / folder)
        assert [schema.api_version for schema in schemas] == ["example.com/v1"]
        assert Checker(schemas).check([thing(least=6)]).errors


@pytest.mark.parametrize(
    ("content", "told"), [(None, "no directory is there"), ("", "no CRD is in it"), ("{", "cannot be read")]
)
def test_directories_without_crds_are_refused(content: str | None, told: str, tmp_path: Path) -> None:
    folder = tmp_path / "crds"
    if content is not None:
        folder.mkdir()
        (folder / "a.json").write_text(content or "{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=told):
        read_crds(folder)


def test_packages_know_kserves_service_down_to_its_pods() -> None:
    packages = PackageSchemas()
    if packages.find("serving.kserve.io/v1beta1", "InferenceService") is None:
        pytest.skip("the KServe SDK is not installed: pip install --no-deps kserve")
    checker = Checker((), packages)
    objects = render(small_spec(profile="keda"), weighty_engine()).objects
    assert not checker.check(objects).errors

    (service,) = (found for found in objects if found["kind"] == "InferenceService")
    (runtime,) = (found for found in objects if found["kind"] == "ClusterServingRuntime")
    service["spec"]["predictor"]["minReplica"] = 1
    runtime["spec"]["containers"][0]["startupProbe"]["failures"] = 3
    messages = [found.message for found in checker.check(objects).errors]
    assert any("minReplica" in message for message in messages)
    assert any("failures" in message for message in messages)


@pytest.mark.parametrize("version", KServeVersion)
def test_upstream_schemas_find_what_their_own_samples_got_wrong(version: KServeVersion) -> None:
    if not crd_directories(version):
        pytest.skip("the upstream CRDs are not on this machine")
    objects = render(small_spec(profile="llm", kserve_version=version), weighty_engine()).objects
    (service,) = (found for found in objects if found["kind"] == "LLMInferenceService")
    service["spec"] |= {"replicas": 1, "scaling": {"minReplicas": 1, "maxReplicas": 2}}
    assert any("replicas" in str(found) or "wva" in str(found) for found in checker_for(version).check(objects).errors)


def test_what_0_21_brought_is_refused_by_0_20() -> None:
    if not crd_directories():
        pytest.skip("the upstream CRDs are not on this machine")
    objects = render(small_spec(profile="llm", kserve_version="0.21"), weighty_engine()).objects
    assert not checker_for(KServeVersion.V0_21).check(objects).errors
    assert any("keda" in found.message for found in checker_for(KServeVersion.V0_20).check(objects).errors)
