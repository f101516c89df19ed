"""Compiling an engine-flow engine where TensorRT-LLM is, by a stand-in for `trtllm-build`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.checkpoints import random_checkpoint
from support.trtllm_build import INSTALLED_VERSION, install
from support.trtllm_models import build_for, record_of
from trierarch.builder.errors import ConfigError, EngineError, ResourceError
from trierarch.builder.manifest import CompiledBy, EngineManifest, Requires
from trierarch.builder.tensorrt_llm import build as build_module
from trierarch.builder.tensorrt_llm.compatibility import Installed, check_compatible
from trierarch.builder.tensorrt_llm.compile import build_command, compile_engine
from trierarch.builder.verify import verify

HOPPER = Installed(tensorrt_llm=INSTALLED_VERSION, tensorrt="10.14.1.48", gpu_architectures=("sm_90", "sm_90"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint("llama", tmp_path_factory.mktemp("model") / "hf")


@pytest.fixture
def engine(checkpoint: Path, tmp_path: Path) -> Path:
    build_for(checkpoint, tmp_path / "engine", tensor_parallel_size=2)
    return tmp_path / "engine"


@pytest.fixture
def tensorrt_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trtllm-build` on PATH."""
    monkeypatch.setenv("PATH", str(install(tmp_path / "bin")), prepend=os.pathsep)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has a GPU, as far as looking at the machine goes."""
    from trierarch.builder import machine

    monkeypatch.setattr(machine, "cuda_architectures", lambda: ("sm_90", "sm_90"))


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("tensorrt_llm", "here")
def test_a_checkpoint_becomes_an_engine(engine: Path) -> None:
    before = EngineManifest.load(engine)
    assert (record_of(before).model, record_of(before).compiled_by) == ("checkpoint", None)
    manifest = compile_engine(engine, here=HOPPER)
    assert manifest == EngineManifest.load(engine) == verify(engine, digests=True)
    record = record_of(manifest)
    assert record.model == "compiled"
    assert record.compiled_by == CompiledBy(
        tensorrt_llm=INSTALLED_VERSION,
        tensorrt="10.14.1.48",
        cuda=torch.version.cuda or "",
        gpu_architecture="sm_90",
    )
    assert manifest.requires == Requires(device="sm_90")
    compiled = {name for name in manifest.files if name.startswith("compiled/")}
    assert compiled == {"compiled/config.json", "compiled/rank0.engine", "compiled/rank1.engine"}
    assert set(before.files) < set(manifest.files), "the checkpoint stays, to be compiled elsewhere"
    assert sorted(contents(engine)) == sorted([*manifest.files, "engine.json"])
    check_compatible("hf", record, HOPPER)


@pytest.mark.usefixtures("tensorrt_llm", "here")
def test_compiling_again_replaces_what_was_compiled(engine: Path) -> None:
    first = compile_engine(engine, here=HOPPER)
    (engine / "compiled" / "stale").write_text("from before")
    blackwell = replace(HOPPER, gpu_architectures=("sm_100", "sm_100"))
    second = compile_engine(engine, here=blackwell)
    assert record_of(second).compiled_by != record_of(first).compiled_by
    assert "stale" not in os.listdir(engine / "compiled")
    check_compatible("hf", record_of(second), blackwell)


@pytest.mark.usefixtures("tensorrt_llm")
def test_a_compilation_that_fails_leaves_the_engine_as_it_was(engine: Path) -> None:
    config = json.loads((engine / "checkpoint" / "config.json").read_text())
    (engine / "checkpoint" / "config.json").write_text(json.dumps({**config, "architecture": "BrokenForCausalLM"}))
    before = contents(engine)
    with pytest.raises(
        ResourceError, match=r"trtllm-build failed with status 1 \(RuntimeError: Required but not provided tensors\)"
    ):
        compile_engine(engine, here=HOPPER)
    assert contents(engine) == before


@pytest.mark.usefixtures("tensorrt_llm", "here")
def test_a_build_compiles_where_tensorrt_llm_is(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "installed", lambda: HOPPER)
    manifest = build_for(checkpoint, tmp_path / "compiled")
    assert record_of(manifest).compiled_by is not None
    assert verify(tmp_path / "compiled", digests=True) == manifest
    assert record_of(build_for(checkpoint, tmp_path / "asked not to", compile=False)).compiled_by is None
    assert record_of(build_for(checkpoint, tmp_path / "other", "1.0")).compiled_by is None
    assert sorted(os.listdir(tmp_path)) == ["asked not to", "bin", "compiled", "other"]


@pytest.mark.usefixtures("tensorrt_llm", "here")
def test_a_draft_is_compiled_with_its_engine(checkpoint: Path, tmp_path: Path) -> None:
    build_for(checkpoint, tmp_path / "engine", draft=str(checkpoint))
    manifest = compile_engine(tmp_path / "engine", here=HOPPER)
    draft = manifest.load_draft(tmp_path / "engine")
    assert draft is not None
    assert record_of(draft).model == "compiled"
    assert verify(tmp_path / "engine", digests=True) == manifest


@pytest.mark.parametrize(
    ("installed", "error", "message"),
    [
        (
            replace(HOPPER, tensorrt_llm=None),
            ResourceError,
            r"TensorRT-LLM is not installed here; compile engine 'hf' on a GPU machine",
        ),
        (replace(HOPPER, tensorrt_llm="1.0.0"), EngineError, r"was built for TensorRT-LLM 1.2, and 1.0.0 is installed"),
        (replace(HOPPER, gpu_architectures=()), ResourceError, r"there is no GPU here to compile for"),
    ],
)
def test_what_is_missing_is_named(installed: Installed, error: type[Exception], message: str, engine: Path) -> None:
    with pytest.raises(error, match=message):
        compile_engine(engine, here=installed)


def test_the_pytorch_flow_is_not_compiled(checkpoint: Path, tmp_path: Path) -> None:
    build_for(checkpoint, tmp_path / "engine", "1.3")
    with pytest.raises(EngineError, match=r"is not compiled by TensorRT-LLM, which loads it as it is"):
        compile_engine(tmp_path / "engine", here=HOPPER)


def test_the_command_names_the_engines_folders(engine: Path) -> None:
    command = build_command(engine, record_of(EngineManifest.load(engine)))
    assert command[:7] == [
        "trtllm-build",
        "--checkpoint_dir",
        str(engine / "checkpoint"),
        "--output_dir",
        str(engine / "compiled"),
        "--workers",
        "2",
    ]


def test_a_gpu_that_cannot_is_refused_before_it_compiles(engine: Path) -> None:
    manifest = EngineManifest.load(engine)
    record = record_of(manifest).model_copy(update={"quant_algo": "FP8"})
    (engine / "engine.json").write_text(manifest.model_copy(update={"tensorrt_llm": record}).to_json())
    with pytest.raises(ConfigError, match=r"engine 'hf': gpu_architecture is 'sm_80': FP8 needs sm_89 or later"):
        compile_engine(engine, here=replace(HOPPER, gpu_architectures=("sm_80",)))
