"""`trierarch adapters`, and building engines that take adapters and bring some along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.checkpoints import random_checkpoint
from support.packed_adapters import load_packed, random_packed, write_random_packed
from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.adapter_check import check_adapter
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import AdapterError, ConfigError
from trierarch.builder.manifest import DrafterKind, DType, EngineManifest, Lora, WeightType
from trierarch.builder.packed_adapter import read_manifest
from trierarch.builder.safetensors_file import write_safetensors
from trierarch.builder.verify import verify
from trierarch.orchestrator import cli
from trierarch.orchestrator.commands.build import build_config


def run(*arguments: object) -> int:
    """Exit status of `trierarch ARGUMENTS`."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as wide as what is in them."""
    from trierarch.orchestrator import console

    monkeypatch.setattr(console.OUT, "width", 300)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint("llama", tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def engine(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("engine") / "engine"
    build(options(checkpoint, output))
    return output


def options(checkpoint: Path, output: Path, **more: Any) -> BuildConfig:
    return BuildConfig(**{"model": str(checkpoint), "output": output, "dtype": DType.FLOAT32, "compile": False, **more})


def peft_directory(directory: Path, rank: int = 4, seed: int = 0, **keys: Any) -> Path:
    """A LoRA on every q_proj of the tiny llama, and its magnitudes where `use_dora`."""
    directory.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"]} | keys
    (directory / "adapter_config.json").write_text(json.dumps(config))
    generator = np.random.default_rng(seed)
    shapes = {"lora_A.weight": (rank, 64), "lora_B.weight": (64, rank)}
    if keys.get("use_dora"):
        shapes["lora_magnitude_vector.weight"] = (64,)
    arrays = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.{part}": generator.standard_normal(shape, np.float32)
        for layer in range(3)
        for part, shape in shapes.items()
    }
    write_safetensors(directory / "adapter_model.safetensors", arrays, {})
    return directory


def test_check_tells_of_each_and_fails_when_one_does_not_fit(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = peft_directory(tmp_path / "good")
    large = peft_directory(tmp_path / "large", rank=65)
    biased = peft_directory(tmp_path / "biased", bias="all")

    assert run("adapters", "check", engine, good) == 0
    shown = capsys.readouterr().out
    assert "fits" in shown
    assert "good" in shown

    assert run("adapters", "check", engine, large, good, biased, tmp_path / "nowhere") == 1
    lines = capsys.readouterr().out.splitlines()
    for name, verdict in {
        "good": "fits",
        "large": "--max-lora-rank 65",
        "biased": "bias is 'all'",
        "nowhere": "does not exist",
    }.items():
        assert verdict in next(line for line in lines if line.startswith(name))


def test_pack_then_list_then_remove(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [peft_directory(tmp_path / "peft" / name, seed=seed) for seed, name in enumerate(("french", "german"))]
    output = tmp_path / "new" / "adapters"

    assert run("adapters", "pack", engine, *sources, "--output", output) == 0
    assert run("adapters", "pack", engine, sources[0], "--output", output, "--name", "third") == 0
    manifest = EngineManifest.load(engine)
    for name in ("french", "german", "third"):
        check_adapter(load_packed(output / f"{name}.safetensors"), manifest)
    digests = {name: read_manifest(output / f"{name}.safetensors").digest for name in ("french", "german", "third")}
    assert digests["french"] == digests["third"] != digests["german"]

    peft_directory(output / "raw")
    (output / "odd.safetensors").write_bytes(b"odd")
    (output / "notes.txt").write_text("no adapter")
    capsys.readouterr()
    assert run("adapters", "list", output, engine) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == {"adapter", "french", "german", "third", "raw", "odd"}
    assert digests["german"][:12] in lines["german"]
    assert "PEFT" in lines["raw"]
    assert "cannot be read" in lines["odd"]

    assert run("adapters", "remove", output, "french", "nobody") == 1
    assert "nothing was removed" in capsys.readouterr().err
    assert (output / "french.safetensors").exists()
    assert run("adapters", "remove", output, "french", "third") == 0
    assert not (output / "french.safetensors").exists()
    assert (output / "german.safetensors").exists()


def test_pack_replaces_and_packs_what_fits(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert run("adapters", "pack", engine, peft_directory(tmp_path / "a" / "x", seed=1), "--output", output) == 0
    before = read_manifest(output / "x.safetensors").digest

    bad = peft_directory(tmp_path / "b" / "bad", peft_type="IA3")
    assert run("adapters", "pack", engine, bad, peft_directory(tmp_path / "b" / "x", seed=2), "--output", output) == 1

    assert "peft_type is 'IA3'" in capsys.readouterr().err
    assert read_manifest(output / "x.safetensors").digest != before
    assert [path.name for path in output.iterdir()] == ["x.safetensors"]


def test_a_packed_adapter_may_be_packed_under_another_name(engine: Path, tmp_path: Path) -> None:
    tensors = write_random_packed(tmp_path, "old", EngineManifest.load(engine))
    assert (
        run("adapters", "pack", engine, tmp_path / "old.safetensors", "--output", tmp_path / "o", "--name", "new") == 0
    )
    assert load_packed(tmp_path / "o" / "new.safetensors").manifest == tensors.manifest


def test_names_and_places_that_cannot_be(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = peft_directory(tmp_path / "a" / "x"), peft_directory(tmp_path / "b" / "x")
    spaced = peft_directory(tmp_path / "my adapter")
    for arguments, message in (
        ((one, two, "--output", tmp_path / "o"), "'x' is the name of more than one"),
        ((one, two, "--output", tmp_path / "o", "--name", "y"), "--name is 'y', and there are 2"),
        ((spaced, "--output", tmp_path / "o"), "'my adapter' is no name"),
        ((one, "--output", tmp_path / "o", "--name", "../x"), "'../x' is no name"),
        ((one, "--output", engine), "engines do not change"),
        ((one, "--output", engine / "adapters"), "engines do not change"),
    ):
        assert run("adapters", "pack", engine, *arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert run("adapters", "remove", tmp_path, "../x") == 2
    assert run("adapters", "list", tmp_path / "nowhere") == 1
    assert run("adapters", "check", tmp_path, one) == 1


@pytest.mark.parametrize("command", ["check", "pack", "list", "remove"])
def test_each_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("adapters", command, "--help") == 0
    assert "Usage" in capsys.readouterr().out


def test_an_engine_brings_adapters_along(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dora = peft_directory(tmp_path / "dora", use_dora=True)
    plain = peft_directory(tmp_path / "plain")
    output = tmp_path / "engine"
    asked = ("build", "--model", checkpoint, "--dtype", "float32", "--no-compile", "--output", output)

    assert run(*asked, "--adapter", f"german={dora}", "--adapter", f"french={plain}", "--max-adapters", "5") == 0
    assert "LoRA of rank 64 at most, 5 at once; brings french, german" in " ".join(capsys.readouterr().out.split())

    manifest = verify(output, digests=True)
    assert manifest.lora == Lora(max_adapters=5)
    assert {"adapters/french.safetensors", "adapters/german.safetensors"} <= manifest.files.keys()
    for name, is_dora in (("french", False), ("german", True)):
        tensors = load_packed(output / "adapters" / f"{name}.safetensors")
        check_adapter(tensors, manifest)
        assert tensors.manifest.is_dora == is_dora
    assert run("adapters", "list", output) == 0
    assert {"french", "german"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert run("inspect", output, "--verify") == 0


def test_two_builds_with_adapters_are_byte_identical(checkpoint: Path, tmp_path: Path) -> None:
    source = peft_directory(tmp_path / "x")
    for name in "ab":
        build(options(checkpoint, tmp_path / name, adapters={"one": source, "two": source}))
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_an_engine_may_bring_a_packed_adapter(engine: Path, checkpoint: Path, tmp_path: Path) -> None:
    tensors = write_random_packed(tmp_path, "x", EngineManifest.load(engine), is_dora=True)
    build(options(checkpoint, tmp_path / "engine", adapters={"y": tmp_path / "x.safetensors"}))
    assert read_manifest(tmp_path / "engine" / "adapters" / "y.safetensors") == tensors.manifest


def test_a_build_with_an_adapter_that_does_not_fit_leaves_nothing(
    checkpoint: Path, engine: Path, tmp_path: Path
) -> None:
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        (
            {"adapters": {"x": peft_directory(tmp_path / "x", rank=8)}, "max_lora_rank": 4},
            AdapterError,
            "adapter 'x': .*rank 8",
        ),
        ({"adapters": {"y": tmp_path / "nowhere"}}, AdapterError, "adapter 'y': .*does not exist"),
        ({"adapters": {"x": tmp_path / "x"}, "max_adapters": 0}, ConfigError, "max_adapters is 0, and there are 1"),
    ]
    foreign: AdapterTensors = random_packed(EngineManifest.load(engine), is_dora=True)
    spoiled = foreign.manifest.model_copy(update={"base_digest": "1" * 64})
    write_safetensors(
        tmp_path / "f.safetensors", foreign.arrays, {"trierarch_adapter": json.dumps(spoiled.model_dump(mode="json"))}
    )
    cases.append(({"adapters": {"f": tmp_path / "f.safetensors"}}, AdapterError, "adapter 'f': base_digest is 1"))
    for keys, error, message in cases:
        with pytest.raises(error, match=message):
            build(options(checkpoint, tmp_path / "engine", **keys))
        assert not (tmp_path / "engine").exists()


def test_who_takes_adapters(checkpoint: Path, tmp_path: Path) -> None:
    drafting = {"speculation": (DrafterKind.DRAFT_MODEL,), "draft": "int8"}
    manifest = build(options(checkpoint, tmp_path / "a", max_lora_rank=16, **drafting))
    assert manifest.lora == Lora(max_rank=16)
    draft = manifest.load_draft(tmp_path / "a")
    assert draft is not None
    assert draft.lora is None
    assert build(options(checkpoint, tmp_path / "b", max_adapters=0)).lora is None
    quantized = build(options(checkpoint, tmp_path / "c", quantization=WeightType.INT8, accuracy_check=False))
    assert quantized.lora == Lora()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["x"], "--adapter is 'x': write NAME=DIR"),
        (["=x"], "write NAME=DIR"),
        (["x="], "write NAME=DIR"),
        (["../x=y"], "--adapter is '../x=y': a name has letters"),
        (["x=a", "x=b"], "--adapter names 'x' twice"),
    ],
)
def test_what_names_no_adapter(texts: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [part for text in texts for part in ("--adapter", text)]
    assert run("build", "--model", "x", "--output", "y", *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_help_of_build_tells_the_defaults_of_adapters() -> None:
    from typer.testing import CliRunner

    shown = CliRunner().invoke(cli.app, ["build", "--help"], env={"COLUMNS": "200"}).output
    for option, default in (("--max-adapters", Lora().max_adapters), ("--max-lora-rank", Lora().max_rank)):
        line = next(line for line in shown.splitlines() if f"{option} " in line)
        assert f"[default: ({default})]" in line
    with pytest.raises(ConfigError, match="--max-lora-rank is 0"):
        build_config(model="x", output=Path("y"), max_lora_rank=0)


def test_compose_makes_models_of_adapters_that_are_there(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf, output = tmp_path / "shelf", tmp_path / "repository"
    shelf.mkdir()
    manifest = EngineManifest.load(engine)
    for name in ("french", "french.draft", "7"):
        write_random_packed(shelf, name, manifest)
    composing = ("compose", engine, "--output", output, "--adapters", shelf)
    assert run(*composing, "--adapter-model", "typo") == 2
    assert "--adapter-model is 'typo'" in capsys.readouterr().err
    assert not output.exists()
    assert run(*composing, "--adapter-model", "french", "--adapter-models") == 0
    models = {path.name for path in output.iterdir()}
    assert {"french", "7"} <= models
    assert "french.draft" not in models
