"""trierarch deploy, as it is called: from flags and files to manifests on disk, and to a cluster's door."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.api_stand_in import ApiStandIn, api_stand_in
from support.deployments import checker_for, crd_directories, raw_spec, weighty_engine, write_engine
from support.kubectl import kubectl
from trierarch.builder.errors import ConfigError, ResourceError
from trierarch.kserve.spec import Profile
from trierarch.orchestrator import cli
from trierarch.orchestrator.cluster import ApplyFailed, apply
from trierarch.orchestrator.manifest_directory import read_manifests, write_manifests

PAGE = Path(__file__).parents[3] / "docs/deploying.md"
CRDS = [f"--crds={directory}" for directory in crd_directories()]


def run(*arguments: str) -> int:
    """Exit status of `trierarch deploy ARGUMENTS`."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["deploy", *arguments])
    code = exit_.value.code
    return code if isinstance(code, int) else 0 if code is None else 1


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "engine")


def flags(engine: Path, output: Path, profile: str = "keda", **more: str) -> list[str]:
    given = {
        "profile": profile,
        "engine": str(engine),
        "output": str(output),
        "name": "tiny",
        "namespace": "models",
        "image": "registry.example/trierarch:0.1.0",
        "storage": "oci+native://registry.example/engines/tiny:1",
        "gpu": "L4",
    } | more
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()] + CRDS


def test_flags_and_a_file_say_the_same(engine: Path, tmp_path: Path) -> None:
    file = tmp_path / "trierarch.yaml"
    file.write_text(yaml.safe_dump({"deploy": raw_spec()}), encoding="utf-8")
    assert run(*flags(engine, tmp_path / "by-flags")) == 0
    assert run(f"--spec={file}", f"--engine={engine}", f"--output={tmp_path / 'by-file'}", *CRDS) == 0

    texts = [{path.name: path.read_text() for path in (tmp_path / name).iterdir()} for name in ("by-flags", "by-file")]
    assert texts[0] == texts[1]


def test_flags_win_over_the_file(engine: Path, tmp_path: Path) -> None:
    file = tmp_path / "trierarch.yaml"
    file.write_text(yaml.safe_dump({"deploy": raw_spec(scale={"max_replicas": 2})}), encoding="utf-8")
    assert run(f"--spec={file}", f"--engine={engine}", f"--output={tmp_path / 'out'}", "--max-replicas=7", *CRDS) == 0
    service = yaml.safe_load((tmp_path / "out/inferenceservice-tiny.yaml").read_text())
    assert service["spec"]["predictor"]["maxReplicas"] == 7


def test_the_budget_is_shown_with_its_sources_and_what_breaks_it(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags(engine, tmp_path / "out", "external", ttft="30", storage_bandwidth="200MB", node_provision="60")
    assert run(*arguments) == 0
    shown = capsys.readouterr()
    table = shown.out
    for told in ("node", "image pull", "fetch", "load", "warm-up", "200 MB/s (stated)", "1000 MB/s (assumed)", "228.0"):
        assert told in table
    assert "waits 228 s, and the objective is 30 s" in shown.err
    assert "--min-replicas 1" in shown.err


@pytest.mark.parametrize(
    ("more", "status", "told"),
    [
        ({"name": "Tiny"}, 2, "name is 'Tiny'"),
        ({"profile": "keda", "min_replicas": "0"}, 2, "knative and external reach zero"),
        ({"gpu": "T4", "engine": "huge"}, 2, "1 × T4 holds"),
        ({"storage": "s3://me:hunter2@bucket/engine"}, 2, "holds a password"),
        ({"engine": "nowhere"}, 1, "engine"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    more: dict[str, str], status: int, told: str, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_engine(tmp_path / "huge", weighty_engine(60_000_000_000))
    others = {name: value for name, value in more.items() if name != "engine"}
    assert run(*flags(tmp_path / more.get("engine", "engine"), tmp_path / "out", **others)) == status
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--check"], "nothing to check"),
        (["a.yaml"], "without --check"),
        (["--profile=keda"], "--engine is missing"),
        (["--engine=e"], "--output is missing"),
        (["--check", "nowhere.yaml"], "is not there"),
        (["--check", "a.yaml", "--crds=nowhere"], "no directory is there"),
    ],
)
def test_options_that_make_no_sense_are_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("text", ["- 1", "deploy: 3", "name: tiny", "deploy: {"])
def test_a_spec_file_that_is_none_is_told(text: str, engine: Path, tmp_path: Path) -> None:
    file = tmp_path / "trierarch.yaml"
    file.write_text(text, encoding="utf-8")
    assert run(f"--spec={file}", f"--engine={engine}", f"--output={tmp_path / 'out'}") == 2


def test_check_finds_what_is_wrong_in_files_of_any_origin(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert run(*flags(engine, output)) == 0
    assert run("--check", str(output), *CRDS) == 0

    path = output / "inferenceservice-tiny.yaml"
    service = yaml.safe_load(path.read_text())
    service["spec"]["predictor"]["scaleMetric"] = "cpu"
    path.write_text(yaml.safe_dump(service), encoding="utf-8")
    capsys.readouterr()
    assert run("--check", str(output), *CRDS) == 1
    assert "error: InferenceService/tiny spec.predictor.scaleMetric: is not for KEDA" in capsys.readouterr().err


def test_lists_and_several_documents_are_read(tmp_path: Path) -> None:
    one, two, three = ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}} for name in "abc")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([{"kind": "List", "items": [one, two]}, None, three]))
    (tmp_path / "b.json").write_text(json.dumps(one))
    (tmp_path / "kustomization.yaml").write_text("kind: Kustomization\n")
    (tmp_path / "notes.txt").write_text("nothing")
    assert read_manifests([tmp_path]) == [one, two, three, one]


def test_a_render_replaces_a_render_and_nothing_else(tmp_path: Path) -> None:
    files = {
        "kustomization.yaml": "# Written by trierarch deploy; change the spec and render again, or patch with kustomize.\n"
    }
    write_manifests(files | {"old.yaml": "a"}, tmp_path / "out")
    write_manifests(files | {"new.yaml": "b"}, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["kustomization.yaml", "new.yaml"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="did not write is there"):
        write_manifests(files, tmp_path / "mine")
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"


def test_the_page_about_deploying_says_what_works(engine: Path, tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8").replace("REGISTRY", "registry.example")
    blocks = re.findall(r"```(yaml|bash)\n(.*?)```", page, re.DOTALL)
    (example,) = [text for kind, text in blocks if kind == "yaml"]
    file = tmp_path / "trierarch.yaml"
    file.write_text(example, encoding="utf-8")
    assert run(f"--spec={file}", f"--engine={engine}", f"--output={tmp_path / 'by-file'}", *CRDS) == 0

    first = next(text for kind, text in blocks if kind == "bash").replace("\\\n", " ").splitlines()[0]
    command = shlex.split(first)
    assert command[:2] == ["trierarch", "deploy"]
    command[command.index("engines/llama")] = str(engine)
    command[command.index("manifests")] = str(tmp_path / "by-flags")
    assert run(*command[2:], *CRDS) == 0


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiStandIn]:
    """A stand-in for a cluster, named by KUBECONFIG."""
    with api_stand_in(tmp_path, checker_for()) as stand_in:
        monkeypatch.setenv("KUBECONFIG", str(stand_in.kubeconfig))
        yield stand_in


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([kubectl(), *arguments], check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("profile", Profile)
def test_kustomize_builds_what_is_rendered(profile: Profile, engine: Path, tmp_path: Path) -> None:
    assert run(*flags(engine, tmp_path / "out", profile)) == 0
    built = call("kustomize", str(tmp_path / "out"))
    assert built.returncode == 0, built.stderr
    found = [document for document in yaml.safe_load_all(built.stdout) if document]
    rendered = read_manifests([tmp_path / "out"])
    assert sorted(map(json.dumps, map(_sorted, found))) == sorted(map(json.dumps, map(_sorted, rendered)))


def _sorted(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True))


@pytest.mark.parametrize("profile", Profile)
def test_a_real_kubectl_applies_what_is_rendered(
    profile: Profile, engine: Path, tmp_path: Path, cluster: ApiStandIn
) -> None:
    output = tmp_path / "out"
    assert run(*flags(engine, output, profile)) == 0
    for again in range(2):
        applied = call("apply", "--server-side", "--validate=false", "-k", str(output))
        assert applied.returncode == 0, f"{again}: {applied.stderr}"
    assert sorted(cluster.order) == sorted(
        f"{each['kind']}/{each['metadata']['name']}" for each in read_manifests([output])
    )


def test_a_bad_patch_is_refused(engine: Path, tmp_path: Path, cluster: ApiStandIn) -> None:
    assert run(*flags(engine, tmp_path / "out"), "--apply") == 0
    good = call(
        "patch",
        "inferenceservice",
        "tiny",
        "-n",
        "models",
        "--type=merge",
        "-p",
        '{"spec":{"predictor":{"maxReplicas":9}}}',
    )
    assert good.returncode == 0, good.stderr
    for patch in ('{"spec":{"predictor":{"scaleMetric":"cpu"}}}', '{"spec":{"predictor":{"minReplicas":"many"}}}'):
        bad = call("patch", "inferenceservice", "tiny", "-n", "models", "--type=merge", "-p", patch)
        assert bad.returncode != 0
        assert "is invalid" in bad.stderr or "Invalid" in bad.stderr, bad.stderr
    shown = call("get", "inferenceservice", "tiny", "-n", "models", "-o", "jsonpath={.spec.predictor.maxReplicas}")
    assert shown.stdout == "9"


def test_apply_goes_in_order_and_tells_what_is_new(
    engine: Path, tmp_path: Path, cluster: ApiStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*flags(engine, tmp_path / "out", "external"), "--apply") == 0
    told = capsys.readouterr().err
    assert "created ClusterServingRuntime/trierarch-models-tiny" in told
    assert "watch it with: kubectl get inferenceservice tiny --namespace models" in told
    order = [name.split("/")[0] for name in cluster.order]
    assert order.index("ClusterServingRuntime") < order.index("InferenceService") < order.index("ScaledObject")

    assert run(*flags(engine, tmp_path / "out", "external"), "--apply") == 0
    told = capsys.readouterr().err
    assert "applied ScaledObject/tiny" in told
    assert "created" not in told


def test_a_cluster_without_the_kind_says_how_far_it_came(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with api_stand_in(tmp_path, checker_for(), lacks="keda.sh") as stand_in:
        monkeypatch.setenv("KUBECONFIG", str(stand_in.kubeconfig))
        assert run(*flags(engine, tmp_path / "out", "external"), "--apply") == 1
    told = capsys.readouterr().err
    assert "ScaledObject/tiny was not applied" in told
    assert "install what brings it. Applied before it: NetworkPolicy/tiny" in told


def test_a_namespace_that_is_not_there_is_told(
    engine: Path, tmp_path: Path, cluster: ApiStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*flags(engine, tmp_path / "out", namespace="elsewhere"), "--apply") == 1
    assert "kubectl create namespace elsewhere" in capsys.readouterr().err


def test_an_object_that_the_cluster_refuses_is_told_with_what_it_said(cluster: ApiStandIn) -> None:
    bad = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "b"}, "date": {}}
    with pytest.raises(
        ApplyFailed, match=r"ConfigMap/a was not applied .*'date' was unexpected.* Applied before it: nothing"
    ):
        apply([bad], None, lambda found, is_new: None)


def test_no_cluster_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ResourceError, match=r"no cluster can be had|does not answer"):
        apply([], "elsewhere", lambda found, is_new: None)
