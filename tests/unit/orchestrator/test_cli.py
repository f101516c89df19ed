from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.checkpoints import random_checkpoint
from trierarch.builder.config import DEFAULT_DRAFTERS, BuildConfig
from trierarch.builder.errors import ConfigError, EngineError, ResourceError, TrierarchError
from trierarch.builder.manifest import Speculation
from trierarch.orchestrator import cli
from trierarch.orchestrator.commands.build import build_config

COMMANDS = ["build", "compile", "compose", "adapters", "serve", "generate", "deploy", "inspect", "doctor", "dashboard"]


def run(*arguments: str) -> int:
    """Exit status of `trierarch ARGUMENTS`."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    return int(exit_.value.code or 0)


def test_help_tells_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0

    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert command in shown
    assert "demo " not in shown.split("A first journey")[0], "the demo is for `make demo`"


@pytest.mark.parametrize("command", [*COMMANDS, "demo"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert "Usage" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "pydantic", "tritonclient", "grpc", "httpx", "transformers"]
    code = (
        "import sys; from trierarch.orchestrator import cli\n"
        "try: cli.main(['--help'])\n"
        f"except SystemExit: sys.stderr.write(','.join(name for name in {heavy!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"trierarch {version('trierarch')}\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EngineError("engine.json is odd; rebuild the engine with: trierarch build"), 1),
        (ResourceError("port 8000 is occupied"), 1),
        (ConfigError("--max-batch-size is 0"), 2),
    ],
)
def test_an_error_of_ours_is_one_line_on_stderr(
    error: TrierarchError, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)

    assert run() == status
    shown = capsys.readouterr()
    assert shown.err == f"error: {error}\n"
    assert shown.out == ""


def test_a_long_error_is_still_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(arguments: object) -> None:
        raise ResourceError("word [bold]not markup[/] " * 50)

    monkeypatch.setattr(cli, "app", fail)
    run()

    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("nonsense",), ("build",), ("serve", "x", "--http-port", "many")])
def test_usage_errors_exit_with_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2


def test_a_bug_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: object) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(cli, "app", fail)

    with pytest.raises(AssertionError):
        cli.main([])


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trierarch.builder.verify.verify", interrupt)

    assert run("inspect", "engine") == 130
    assert capsys.readouterr().err == ""


def test_inspect_of_what_is_no_engine_names_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(tmp_path)) == 1
    assert "build one with: trierarch build" in capsys.readouterr().err


def test_serve_of_what_is_neither_engine_nor_repository_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run("serve", str(tmp_path), "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--no-gateway") == 2
    )
    assert "neither an engine nor a model repository" in capsys.readouterr().err


def test_what_was_not_asked_is_left_to_the_builder() -> None:
    asked = build_config(model="demo", output=Path("out"), max_batch_size=None, max_seq_len=77)

    assert asked == BuildConfig(model="demo", output=Path("out"), max_seq_len=77)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_batch_size": 0}, "--max-batch-size is 0: .*greater than 0"),
        ({"dtype": "int3"}, "--dtype is 'int3': .*'float32'"),
        ({"quantization": "int3"}, "--quantization is 'int3': .*'int8', 'int4', 'source'"),
        ({"target": "abacus"}, "--target is 'abacus'"),
        ({"max_perplexity_increase": -0.5}, "--max-perplexity-increase is -0.5: .*greater than or equal to 0"),
        ({"max_perplexity_increase": float("inf")}, "--max-perplexity-increase is inf: .*finite"),
        ({"speculation": ("suffix", "sufix")}, "--speculation is 'sufix': .*'prompt_lookup', 'suffix', 'draft_model'"),
        ({"max_draft_tokens": 0}, "--max-draft-tokens is 0: .*greater than 0"),
        ({"draft_quantization": "int3"}, "--draft-quantization is 'int3': .*'int8', 'int4', 'source'"),
    ],
)
def test_an_option_out_of_range_is_named_as_typed(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(model="demo", output=Path("out"), **asked)


@pytest.mark.parametrize(
    "field", ["max_batch_size", "max_num_tokens", "max_queue_size", "target", "max_perplexity_increase"]
)
def test_the_help_of_build_tells_the_builder_s_defaults(field: str) -> None:
    default = BuildConfig.model_fields[field].default

    shown = CliRunner().invoke(cli.app, ["build", "--help"], env={"COLUMNS": "200"}).output

    option = next(line for line in shown.splitlines() if f"--{field.replace('_', '-')} " in line)
    assert f"[default: ({default})]" in option


def test_build_measures_what_quantization_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("the king is in the ring, singing. " * 60)
    checkpoint = random_checkpoint("llama", tmp_path / "hf")
    asked = ("build", "--model", str(checkpoint), "--dtype", "float32", "--no-compile", "--quantization", "int8")

    assert run(*asked, "--output", str(tmp_path / "a"), "--json", "--accuracy-text", str(tmp_path / "text")) == 0
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]
    assert accuracy["text"] == "text"
    assert accuracy["perplexity"] > 100

    assert run(*asked, "--output", str(tmp_path / "b"), "--no-accuracy-check") == 0
    assert "not measured" in capsys.readouterr().out


def test_the_help_of_build_tells_who_guesses() -> None:
    shown = CliRunner().invoke(cli.app, ["build", "--help"], env={"COLUMNS": "200"}).output

    defaults = Speculation(drafters=DEFAULT_DRAFTERS)
    for option, default in (
        ("--speculation", f"{','.join(DEFAULT_DRAFTERS)}, and draft_model with --draft"),
        ("--max-draft-tokens", str(defaults.max_draft_tokens)),
        ("--speculation-history-bytes", f"{defaults.history_bytes >> 20}MiB"),
    ):
        line = next(line for line in shown.splitlines() if f"{option} " in line)
        assert f"[default: ({default})]" in line


def test_build_and_inspect_tell_of_speculation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, engine = random_checkpoint("llama", tmp_path / "hf"), str(tmp_path / "engine")
    asked = ("build", "--model", str(checkpoint), "--dtype", "float32", "--no-compile", "--overwrite")

    assert run(*asked, "--output", engine, "--speculation", "none", "--json") == 0
    assert json.loads(capsys.readouterr().out)["speculation"] is None
    assert run(*asked, "--output", engine, "--speculation-history-bytes", "0", "--json") == 0
    assert json.loads(capsys.readouterr().out)["speculation"]["history_bytes"] == 0
    guessing = ("--speculation", "suffix, draft_model", "--draft", "int8", "--max-draft-tokens", "3")
    assert run(*asked, "--output", engine, *guessing) == 0
    assert "draft weights" in (shown := capsys.readouterr()).err
    assert "suffix, draft_model: up to 3 tokens ahead" in shown.out
    assert run("inspect", engine) == 0
    assert "hf-int8: " in capsys.readouterr().out
    assert run("inspect", engine, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["speculation"]["drafters"] == ["suffix", "draft_model"]
    assert document["draft"]["quantization"]["weights"] == "int8"


def test_generate_without_a_server_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "hello", "--url", "127.0.0.1:9") == 1
    assert "trierarch serve" in capsys.readouterr().err


def test_doctor_tells_scripts_what_is_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from trierarch.orchestrator import diagnosis

    def nowhere() -> None:
        raise ResourceError("no tritonserver on PATH: install one")

    monkeypatch.setattr(diagnosis, "find_triton", nowhere)

    assert run("doctor", "--json") == 1
    found = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert found["Triton"]["state"] == "broken"
    assert found["Triton"]["remedy"] == "install one"
    assert found["CPU"]["state"] == "fact"
