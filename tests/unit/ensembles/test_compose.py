"""Composing: whole or not at all, linked or copied, and never over what is not a repository."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.errors import ConfigError, EngineError, ResourceError
from trierarch.builder.manifest import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    DrafterKind,
    EngineManifest,
    Lora,
    Speculation,
)
from trierarch.builder.verify import digest_file, verify
from trierarch.ensembles import compose as compose_module
from trierarch.ensembles.compose import ComposeOptions, compose

MODELS = {"ensemble", "postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls"}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine as far as a composer looks."""
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / WEIGHTS_NAME).write_bytes(b"weights")
    (engine / TOKENIZER_NAME).write_text("{}")
    files = {name: digest_file(engine / name) for name in (WEIGHTS_NAME, TOKENIZER_NAME)}
    manifest = tiny_manifest(tiny_architecture()).model_copy(update={"files": files, "lora": Lora()})
    (engine / MANIFEST_NAME).write_text(manifest.to_json())
    return engine


def test_every_model_finds_the_linked_engine(engine: Path, tmp_path: Path) -> None:
    composition = compose(engine, tmp_path / "deep" / "repository")
    assert set(composition.models) == MODELS
    assert composition.engine.name == "tiny"
    for model in MODELS - {"ensemble"}:
        link = composition.path / model / "1" / "engine"
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == engine


def test_links_survive_moving_both_together(engine: Path, tmp_path: Path) -> None:
    compose(engine, tmp_path / "repository")
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    shutil.move(tmp_path, moved)
    assert (moved / "repository/preprocessing/1/engine" / MANIFEST_NAME).is_file()


def test_a_copy_stands_alone(engine: Path, tmp_path: Path) -> None:
    repository = compose(engine, tmp_path / "repository", ComposeOptions(copy=True)).path
    shutil.rmtree(engine)
    assert not any(path.is_symlink() for path in repository.rglob("*"))
    assert (repository / "tensorrt_llm/1/engine" / WEIGHTS_NAME).read_bytes() == b"weights"
    beside = {path.name for path in (repository / "preprocessing/1/engine").iterdir()}
    assert beside == {MANIFEST_NAME, TOKENIZER_NAME}


def test_a_copy_takes_the_draft_along(engine: Path, tmp_path: Path) -> None:
    """To where it is run from; the models beside need none."""
    draft = engine / "draft"
    draft.mkdir()
    (draft / WEIGHTS_NAME).write_bytes(b"guesses")
    manifest = EngineManifest.load(engine)
    drafts = manifest.model_copy(update={"files": {WEIGHTS_NAME: digest_file(draft / WEIGHTS_NAME)}})
    (draft / MANIFEST_NAME).write_text(drafts.to_json())
    files = manifest.files | {f"draft/{name}": digest_file(draft / name) for name in (WEIGHTS_NAME, MANIFEST_NAME)}
    speculation = Speculation(drafters=(DrafterKind.DRAFT_MODEL,), draft_engine="draft")
    manifest = manifest.model_copy(update={"files": files, "speculation": speculation})
    (engine / MANIFEST_NAME).write_text(manifest.to_json())

    linked = compose(engine, tmp_path / "linked").path
    assert verify(linked / "tensorrt_llm/1/engine", digests=True).load_draft(engine) == drafts
    copied = compose(engine, tmp_path / "copied", ComposeOptions(copy=True)).path
    shutil.rmtree(engine)
    assert verify(copied / "tensorrt_llm/1/engine", digests=True) == manifest
    assert manifest.load_draft(copied / "tensorrt_llm/1/engine") == drafts
    assert not (copied / "preprocessing/1/engine/draft").exists()


def test_a_repository_is_replaced(engine: Path, tmp_path: Path) -> None:
    repository = compose(engine, tmp_path / "repository").path
    (repository / "stale").touch()
    compose(engine, repository, ComposeOptions(decoupled=False))
    assert not (repository / "stale").exists()
    assert "model_transaction_policy" in (repository / "tensorrt_llm/config.pbtxt").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"engine", "repository"}


def test_anything_else_is_left_alone(engine: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("all of it")
    with pytest.raises(ConfigError, match="no model repository is there"):
        compose(engine, precious)
    assert (precious / "thesis.txt").read_text() == "all of it"


def test_the_engine_is_never_replaced_by_a_link_to_itself(engine: Path, tmp_path: Path) -> None:
    repository = compose(engine, tmp_path / "repository", ComposeOptions(copy=True)).path
    inside = repository / "tensorrt_llm/1/engine"
    with pytest.raises(ConfigError, match="the engine itself lies there"):
        compose(inside, repository)
    assert (inside / WEIGHTS_NAME).is_file()


def test_no_engine_no_repository(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is not an engine"):
        compose(tmp_path / "nowhere", tmp_path / "repository")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compose_module.shutil, "copyfile", fill)
    with pytest.raises(ResourceError, match=r"disk of .* is full"):
        compose(engine, tmp_path / "repository", ComposeOptions(copy=True))
    assert {path.name for path in tmp_path.iterdir()} == {"engine"}


def test_triton_s_messages_come_without_its_client() -> None:
    """And are the client's own once somebody imports that."""
    code = (
        "import sys; from trierarch.ensembles.triton_messages import model_config_pb2 as ours\n"
        "assert 'grpc' not in sys.modules and 'numpy' not in sys.modules\n"
        "from tritonclient.grpc import model_config_pb2 as theirs; assert ours.ModelConfig is theirs.ModelConfig"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def parameters(repository: Path, model: str) -> dict[str, str]:
    """What a model's configuration says beyond the defaults."""
    config = text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    return {name: value.string_value for name, value in config.parameters.items()}


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A directory of adapters."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "french.safetensors").write_bytes(b"french")
    return shelf


def test_adapters_are_linked_relative_to_the_repository(engine: Path, shelf: Path, tmp_path: Path) -> None:
    options = ComposeOptions(
        adapters=(shelf,),
        adapter_models=("french",),
        adapter_upload_directory=tmp_path / "uploads",
        adapter_uploads=False,
    )
    composition = compose(engine, tmp_path / "repository", options)
    assert set(composition.models) == MODELS | {"french"}
    assert parameters(composition.path, "tensorrt_llm") == {
        "adapter_directories": "../shelf",
        "adapter_upload_directory": "../uploads",
        "allow_adapter_uploads": "false",
    }
    assert parameters(composition.path, "french") == {"role": "adapter", "adapter_directories": "../shelf"}
    assert parameters(composition.path, "tensorrt_llm_bls") == {}
    assert [path.name for path in (composition.path / "french/1").iterdir()] == [".gitkeep"]


def test_a_copy_takes_the_adapters_along(engine: Path, shelf: Path, tmp_path: Path) -> None:
    options = ComposeOptions(copy=True, adapters=(shelf,), adapter_models=("french",))
    repository = compose(engine, tmp_path / "repository", options).path
    shutil.rmtree(shelf)
    named = parameters(repository, "french")["adapter_directories"]
    assert named == parameters(repository, "tensorrt_llm")["adapter_directories"] == "tensorrt_llm/1/adapters-0"
    assert (repository / named / "french.safetensors").read_bytes() == b"french"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (ComposeOptions(adapters=(Path("nowhere"),)), "adapters is 'nowhere': no directory is there"),
        (ComposeOptions(adapter_models=("../x",)), "adapter_models has '../x', which is no adapter's name"),
        (ComposeOptions(adapter_models=("ensemble",)), "adapter_models has 'ensemble': a model of that name is there"),
        (ComposeOptions(adapter_models=("x", "x")), "adapter_models has 'x': a model of that name is there"),
    ],
)
def test_adapters_that_cannot_be_served_leave_nothing(
    engine: Path, tmp_path: Path, options: ComposeOptions, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        compose(engine, tmp_path / "repository", options)
    assert {path.name for path in tmp_path.iterdir()} == {"engine"}


def test_adapters_need_an_engine_that_takes_them(engine: Path, shelf: Path, tmp_path: Path) -> None:
    manifest = EngineManifest.load(engine).model_copy(update={"lora": None})
    (engine / MANIFEST_NAME).write_text(manifest.to_json())
    for options in (ComposeOptions(adapters=(shelf,)), ComposeOptions(adapter_models=("french",))):
        with pytest.raises(ConfigError, match="takes no adapters; build it with --max-adapters"):
            compose(engine, tmp_path / "repository", options)


@pytest.mark.parametrize("role", ["llmapi", "vllm"])
def test_a_model_with_other_tensors(engine: Path, tmp_path: Path, role: str) -> None:
    plain = ComposeOptions()
    composition = compose(engine, tmp_path / "repository", replace(plain, **{role: "chat"}))
    assert set(composition.models) == MODELS | {"chat"}
    config = (composition.path / "chat" / "config.pbtxt").read_text()
    assert 'key: "role"' in config
    assert f'string_value: "{role}"' in config
    assert not (composition.path / "chat" / "1" / "engine").exists()
    for name in ("tensorrt_llm", "a/b"):
        with pytest.raises(ConfigError, match=f"{role} is '{name}'"):
            compose(engine, tmp_path / "other", replace(plain, **{role: name}))
    with pytest.raises(ConfigError, match="vllm is 'chat': a model of that name is there"):
        compose(engine, tmp_path / "other", ComposeOptions(llmapi="chat", vllm="chat"))
