from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trierarch.benchmarks import __main__ as command
from trierarch.benchmarks import kv_waste
from trierarch.benchmarks.registry import BENCHMARKS, Benchmark, Options
from trierarch.benchmarks.report import Report
from trierarch.benchmarks.rivals.catalog import QUANTIZED, RIVALS, SPECULATING, UNQUANTIZED, chosen, named
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


class Cut:
    """A benchmark that is interrupted behind some figures."""

    def __init__(self, num_figures: int) -> None:
        self.num_figures = num_figures

    def run(self, options: Options) -> Iterator[Report]:
        (complete,) = kv_waste.run(options)
        for count in range(self.num_figures):
            yield replace(complete, is_complete=False, rows=complete.rows[: count + 1])
        raise KeyboardInterrupt


def test_a_run_that_is_cut_leaves_what_it_measured(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Benchmark, "run", lambda benchmark, options: Cut(2).run(options))

    result = runner.invoke(command.app, ["kv_waste", "--quick"])

    assert result.exit_code == command.INTERRUPTED
    assert "did not come to its end" in result.stdout
    assert [path.name for path in out.iterdir()] == ["kv_waste-quick-incomplete.json"]
    content = json.loads((out / "kv_waste-quick-incomplete.json").read_text(encoding="utf-8"))
    assert (content["is_complete"], len(content["rows"])) == (False, 2)


def test_a_run_that_is_cut_before_its_first_figure_leaves_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Benchmark, "run", lambda benchmark, options: Cut(0).run(options))

    assert runner.invoke(command.app, ["kv_waste", "--quick"]).exit_code == command.INTERRUPTED
    assert list(out.iterdir()) == []


def test_an_unknown_benchmark_is_a_usage_error() -> None:
    assert runner.invoke(command.app, ["speed"]).exit_code == 2


@pytest.mark.parametrize(
    ("value", "names"),
    [(None, None), ("none", ()), ("openvino", ("openvino",)), ("openvino, llamacpp", ("openvino", "llamacpp"))],
)
def test_rivals_are_named_with_commas(value: str | None, names: tuple[str, ...] | None) -> None:
    assert command.listed_names(value) == names


@pytest.mark.parametrize(("value", "counts"), [(None, ()), ("8", (8,)), ("64, 1,8", (1, 8, 64))])
def test_numbers_of_streams_are_given_with_commas(value: str | None, counts: tuple[int, ...]) -> None:
    assert command.stream_counts(value) == counts


@pytest.mark.parametrize("value", ["0", "many", "8,-1", "8,,9"])
def test_what_is_no_number_of_streams_is_refused_by_name(value: str) -> None:
    refused = runner.invoke(command.app, ["kv_waste", "--streams", value])

    assert refused.exit_code == 2
    assert f"--streams is {value!r}" in refused.output


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


def test_a_variant_needs_its_base_and_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trierarch.benchmarks.rivals.rival.RIVALS", tmp_path)
    heard: list[str] = []

    def rival(name: str, base: Rival | None = None) -> Rival:
        def launch() -> Launch:
            raise NotImplementedError

        return Rival(name=name, summary="", install=lambda say: heard.append(name), launch=launch, base=base)

    base = rival("base")
    small, smaller = rival("small", base), rival("smaller", base)
    small.ensure(lambda message: None)

    assert heard == ["base", "small"]
    assert (base.is_installed, small.is_installed, smaller.is_installed) == (True, True, False)
    smaller.ensure(lambda message: None)
    assert heard == ["base", "small", "smaller"]
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_benchmark_takes_no_rivals_of_another() -> None:
    with pytest.raises(ConfigError, match=r"rival is 'openvino': known are openvino-int8, openvino-int4, llamacpp-q8"):
        chosen(["openvino"], QUANTIZED)
    with pytest.raises(ConfigError, match="rival is 'llamacpp-q8'"):
        chosen(["llamacpp-q8"], UNQUANTIZED)
    with pytest.raises(ConfigError, match="rival is 'llamacpp'"):
        chosen(["llamacpp"], SPECULATING)


def test_a_rival_that_guesses_is_its_base_by_another_worker() -> None:
    for name, rival in SPECULATING.items():
        assert rival.base is not None
        base, launch = rival.base.launch(), rival.launch()
        assert launch.module.startswith(f"{base.module}_")
        assert find_spec(launch.module) is not None
        assert replace(launch, name=base.name, module=base.module) == base
        assert name == f"{base.name}-{launch.module.rpartition('_')[2]}"


def test_rivals_are_known_by_their_own_names_and_files() -> None:
    assert all(name == rival.name == rival.launch().name for name, rival in RIVALS.items())
    assert {rival.bits for rival in UNQUANTIZED.values()} == {16}
    assert sorted(rival.bits for rival in QUANTIZED.values()) == [4, 4, 8, 8]
    models = [rival.launch().model for rival in (*QUANTIZED.values(), RIVALS["openvino"], RIVALS["llamacpp"])]
    assert len(set(models)) == len(models)
