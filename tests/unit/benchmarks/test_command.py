from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trierarch.benchmarks import __main__ as command
from trierarch.benchmarks.registry import BENCHMARKS
from trierarch.benchmarks.rivals.catalog import RIVALS, chosen, named
from trierarch.benchmarks.rivals.rival import Rival, run
from trierarch.benchmarks.subjects.worker import Launch
from trierarch.builder.errors import ConfigError, ResourceError

runner = CliRunner()


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(command, "OUT", tmp_path)
    return tmp_path


def test_without_a_name_every_benchmark_is_listed_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    command.app([], standalone_mode=False)

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_can_be_imported_and_run(name: str) -> None:
    assert callable(importlib.import_module(f"trierarch.benchmarks.{name}").run)


def test_json_is_what_is_written(out: Path) -> None:
    result = runner.invoke(command.app, ["kv_waste", "--quick", "--json", "--seed", "9"])

    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads((out / "kv_waste-quick.json").read_text(encoding="utf-8"))
    assert json.loads(result.stdout)["seed"] == 9


def test_an_unknown_benchmark_is_a_usage_error() -> None:
    assert runner.invoke(command.app, ["speed"]).exit_code == 2


@pytest.mark.parametrize(
    ("value", "names"),
    [(None, None), ("none", ()), ("openvino", ("openvino",)), ("openvino, llamacpp", ("openvino", "llamacpp"))],
)
def test_rivals_are_named_with_commas(value: str | None, names: tuple[str, ...] | None) -> None:
    assert command.rival_names(value) == names


def test_an_unknown_rival_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"rival is 'tgi': known are openvino, llamacpp, transformers, vllm"):
        named(["tgi"])


def test_a_rival_that_is_not_here_is_told_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trierarch.benchmarks.rivals.rival.RIVALS", tmp_path)

    with pytest.raises(ConfigError, match=r"install with: python -m trierarch\.benchmarks install openvino"):
        chosen(["openvino"])
    assert chosen(None) == []
    assert chosen([]) == []


def test_an_installation_that_fails_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trierarch.benchmarks.rivals.rival.RIVALS", tmp_path)
    attempts: list[str] = []

    def install(say: object) -> None:
        attempts.append("install")
        if len(attempts) == 1:
            run(["sh", "-c", "echo why >&2; exit 3"])

    def launch() -> Launch:
        raise NotImplementedError

    rival = Rival(name="flaky", summary="", install=install, launch=launch)

    with pytest.raises(ResourceError, match=r"status 3:\nwhy"):
        rival.ensure(lambda message: None)
    assert not rival.is_installed
    for _ in range(2):
        rival.ensure(lambda message: None)
    assert rival.is_installed
    assert attempts == ["install", "install"]


def test_rivals_are_known_by_their_own_names() -> None:
    assert all(name == rival.name for name, rival in RIVALS.items())
