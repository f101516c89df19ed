"""Building for TensorRT-LLM from the command line: what is shown, to people and to programs."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from support.checkpoints import random_checkpoint
from support.trtllm_facts import command_mistakes
from trierarch.builder.manifest import EngineManifest
from trierarch.orchestrator import cli


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return random_checkpoint("llama", tmp_path / "hf")


def run(*arguments: str | Path) -> int:
    """Exit status of `trierarch ARGUMENTS`."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(one) for one in arguments])
    return int(exit_.value.code or 0)


def for_tensorrt_llm(checkpoint: Path, output: Path, *more: str) -> list[str | Path]:
    return ["build", "--model", checkpoint, "--output", output, "--target", "tensorrt_llm", *more]


def test_a_dry_run_shows_the_command_and_writes_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--tensorrt-llm-version", "1.2.1", "--tensor-parallel-size", "2", "--max-adapters", "4", "--dry-run")
    assert run(*for_tensorrt_llm(checkpoint, tmp_path / "out", *more)) == 0
    shown = capsys.readouterr().out
    assert "plugin_config.use_paged_context_fmha" in shown
    (line,) = [one for one in shown.splitlines() if one.startswith("trtllm-build")]
    command = shlex.split(line)
    assert list(command_mistakes("1.2", command[1:])) == []
    assert command[command.index("--checkpoint_dir") + 1] == str(tmp_path / "out" / "checkpoint")
    assert command[command.index("--workers") + 1] == "2"
    assert os.listdir(tmp_path) == ["hf"]


def test_a_dry_run_for_programs(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(*for_tensorrt_llm(checkpoint, tmp_path / "out", "--dry-run", "--json", "--tensorrt-llm-version", "1.2"))
        == 0
    )
    plan = json.loads(capsys.readouterr().out)
    assert plan["build_config"]["kv_cache_type"] == "PAGED"
    assert plan["build_config"]["plugin_config"]["remove_input_padding"] is True
    assert plan["pretrained_config"]["architecture"] == "LlamaForCausalLM"
    assert plan["llm_args"]["enable_chunked_prefill"] is True
    assert plan["command"].startswith("trtllm-build --checkpoint_dir ")
    assert (
        run(*for_tensorrt_llm(checkpoint, tmp_path / "out", "--dry-run", "--json", "--tensorrt-llm-version", "1.3"))
        == 0
    )
    plan = json.loads(capsys.readouterr().out)
    assert (plan["command"], plan["build_config"], plan["flow"]) == (None, None, "pytorch")
    assert os.listdir(tmp_path) == ["hf"]


def test_a_dry_run_is_of_tensorrt_llm_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build", "--model", checkpoint, "--output", tmp_path / "out", "--dry-run") == 2
    assert "--dry-run shows builds for tensorrt_llm, and --target is 'torch'" in capsys.readouterr().err


def test_a_build_says_what_is_still_to_be_done(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(
            *for_tensorrt_llm(
                checkpoint, tmp_path / "out", "--tensorrt-llm-version", "1.2", "--pipeline-parallel-size", "3"
            )
        )
        == 0
    )
    shown = capsys.readouterr()
    assert "not yet: trierarch compile, on the GPU machine" in shown.out
    assert "3 GPUs: each layer over 1, the layers over 3" in shown.out
    assert f"compile it on the GPU machine with: trierarch compile {tmp_path / 'out'}" in shown.err
    assert run("inspect", tmp_path / "out", "--json") == 0
    record = json.loads(capsys.readouterr().out)["tensorrt_llm"]
    assert (record["version"], record["pipeline_parallel_size"], record["compiled_by"]) == ("1.2", 3, None)
    assert run("compile", tmp_path / "out") == 1
    assert "TensorRT-LLM is not installed here; compile engine 'hf' on a GPU machine" in capsys.readouterr().err


def test_an_engine_for_the_newest_is_ready_to_be_served(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(
            *for_tensorrt_llm(checkpoint, tmp_path / "out", "--tensorrt-llm-version", "1.3", "--draft", str(checkpoint))
        )
        == 0
    )
    shown = capsys.readouterr()
    assert "1.3, pytorch flow" in shown.out
    assert "draft_model: up to 4 tokens ahead" in shown.out
    assert "serve it with: trierarch serve" in shown.err
    assert EngineManifest.load(tmp_path / "out").tensorrt_llm is not None
    assert run("compile", tmp_path / "out") == 1
    assert "is not compiled by TensorRT-LLM, which loads it as it is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--tensorrt-llm-version", "1.9"), "tensorrt_llm_version is '1.9': known are 1.0, 1.1, 1.2, 1.3"),
        (("--gpu-architecture", "h100"), "--gpu-architecture is 'h100'"),
        (("--gpu-memory", "lots"), "'lots' is no size"),
        (("--tensor-parallel-size", "0"), "--tensor-parallel-size is 0"),
        (("--tensorrt-llm-flow", "fast"), "--tensorrt-llm-flow is 'fast'"),
    ],
)
def test_options_out_of_range_are_named(
    more: tuple[str, ...], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*for_tensorrt_llm(checkpoint, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flow", ["engine", "pytorch"])
def test_what_an_engine_is_to_tell(
    flow: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--tensorrt-llm-version", "1.1", "--tensorrt-llm-flow", flow, "--gather-logits", "--kv-event-buffer", "64"]
    if flow == "pytorch":
        more += ["--tensorrt-llm-sampler", "torch"]
    assert run(*for_tensorrt_llm(checkpoint, tmp_path / "out", "--dry-run", "--json", *more)) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["llm_args"]["gather_generation_logits"] is True
    assert plan["llm_args"]["kv_cache_config"]["event_buffer_max_size"] == 64
    if flow == "engine":
        assert "--gather_context_logits" in shlex.split(plan["command"])
    else:
        assert plan["llm_args"]["sampler_type"] == "TorchSampler"


def test_options_of_one_target_are_not_the_others(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build", "--model", checkpoint, "--output", tmp_path / "out", "--gather-logits") != 0
    assert "gather_logits is 'True', but target is 'torch'" in " ".join(capsys.readouterr().err.split())
    more = ("--no-prefix-caching", "--kv-event-buffer", "64")
    assert run(*for_tensorrt_llm(checkpoint, tmp_path / "out", *more)) != 0
    assert "kv_event_buffer is 64, and enable_prefix_caching is off" in " ".join(capsys.readouterr().err.split())
