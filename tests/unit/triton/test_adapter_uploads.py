"""What clients send is kept, and kept apart from what is the operator's."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.packed_adapters import load_packed, taking_adapters, write_random_packed
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder import safetensors_file
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import EngineManifest
from trierarch.builder.packed_adapter import write_packed
from trierarch.python_backend.adapters.directory import AdapterDirectories
from trierarch.python_backend.errors import ExecutorFailed, InvalidRequest, UnusableAdapter
from trierarch.python_backend.triton.adapter_inputs import BASE_MODEL, BY_TASK, AdapterInput, LoraTensors
from trierarch.python_backend.triton.adapter_uploads import AdapterUploads
from trierarch.python_backend.triton.lora_tensors import read_lora

ENGINE: EngineManifest = taking_adapters(tiny_manifest(tiny_architecture()), max_rank=8)


def upload(task: int, number: float = 0.5) -> AdapterInput:
    """attn_q of layer 0, all of whose numbers are `number`."""
    tensors = LoraTensors(np.full((1, 64), number, np.float16), np.array([[1, 0, 1]], np.int32))
    return AdapterInput(str(task), BY_TASK, tensors)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """The operator's directory."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    return shelf


def opened(tmp_path: Path, **options: Any) -> AdapterUploads:
    directories = AdapterDirectories((tmp_path / "shelf",), tmp_path / "engine", ENGINE)
    return AdapterUploads(directories, ENGINE, **({"directory": tmp_path / "uploads", "max_adapters": 3} | options))


def kept(uploads: AdapterUploads) -> dict[str, str]:
    """Name -> digest."""
    return {path.stem: load_packed(path).manifest.digest for path in uploads.directory.iterdir()}


def digest(number: float) -> str:
    tensors = upload(1, number).upload
    assert tensors is not None
    return read_lora(tensors, ENGINE, "x").manifest.digest


def test_what_is_sent_is_found_by_its_id(tmp_path: Path, shelf: Path) -> None:
    uploads = opened(tmp_path)
    assert uploads.take(upload(7)) == AdapterInput("7", BY_TASK)  # the tensors are not held as long as the request runs
    assert uploads.take(BASE_MODEL) == BASE_MODEL
    uploads.take(AdapterInput("french"))
    assert kept(uploads) == {"7": digest(0.5)}
    found = AdapterDirectories((shelf, uploads.directory), tmp_path / "engine", ENGINE).find("7")
    assert found.digest == digest(0.5)
    assert found.manifest.source == "lora_task_id 7"


def test_the_same_again_changes_nothing_and_another_replaces_it(tmp_path: Path, shelf: Path) -> None:
    uploads = opened(tmp_path)
    uploads.take(upload(7))
    path = uploads.directory / "7.safetensors"
    before = path.stat()
    uploads.take(upload(7))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    uploads.take(upload(7, 0.25))
    assert kept(uploads) == {"7": digest(0.25)}


def test_what_was_damaged_is_repaired_by_sending_it_again(tmp_path: Path, shelf: Path) -> None:
    uploads = opened(tmp_path)
    (uploads.directory / "7.safetensors").write_bytes(b"nonsense")
    uploads.take(upload(7))
    assert kept(uploads) == {"7": digest(0.5)}


def test_places_are_counted(tmp_path: Path, shelf: Path) -> None:
    uploads = opened(tmp_path)
    (uploads.directory / "notes.txt").touch()
    for task in (1, 2, 3):
        uploads.take(upload(task))
    with pytest.raises(
        InvalidRequest, match=r"^lora_weights is \(1, 64\): clients have sent 3 adapters.*max_uploaded_adapters"
    ):
        uploads.take(upload(4))
    uploads.take(upload(3, 0.25))  # a place that it has already
    (uploads.directory / "1.safetensors").unlink()
    uploads.take(upload(4))
    again = opened(tmp_path)
    with pytest.raises(InvalidRequest, match="clients have sent 3 adapters"):
        again.take(upload(5))


def test_the_operators_are_never_overwritten(tmp_path: Path, shelf: Path) -> None:
    uploads = opened(tmp_path)
    own = upload(7).upload
    assert own is not None
    write_packed(read_lora(own, ENGINE, "x"), shelf / "7.safetensors")
    (shelf / "8.safetensors").write_bytes(b"damaged")
    uploads.take(upload(7))
    with pytest.raises(InvalidRequest, match="adapter 7 is the operator's, and another one"):
        uploads.take(upload(7, 0.25))
    with pytest.raises(UnusableAdapter, match=r"^lora_task_id is '8'"):
        uploads.take(upload(8))
    assert kept(uploads) == {}


def test_neither_are_those_that_the_engine_brings(tmp_path: Path, shelf: Path) -> None:
    (tmp_path / "engine/adapters").mkdir(parents=True)
    write_random_packed(tmp_path / "engine/adapters", "9", ENGINE)
    with pytest.raises(InvalidRequest, match="adapter 9 is the operator's"):
        opened(tmp_path).take(upload(9))


def test_uploads_are_switched_off(tmp_path: Path, shelf: Path) -> None:
    uploads = opened(tmp_path, is_allowed=False)
    with pytest.raises(InvalidRequest, match=r"^lora_weights is \(1, 64\): this server takes no adapters from clients"):
        uploads.take(upload(7))
    uploads.take(AdapterInput("7", BY_TASK))
    assert kept(uploads) == {}


def test_nothing_is_left_of_a_temporary_place(tmp_path: Path, shelf: Path) -> None:
    uploads = opened(tmp_path, directory=None)
    uploads.take(upload(7))
    assert kept(uploads) == {"7": digest(0.5)}
    uploads.close()
    assert not uploads.directory.exists()
    uploads.close()


def test_a_place_that_was_named_stays(tmp_path: Path, shelf: Path) -> None:
    uploads = opened(tmp_path, directory=tmp_path / "a/b")
    uploads.take(upload(7))
    uploads.close()
    assert kept(uploads) == {"7": digest(0.5)}
    with pytest.raises(ConfigError, match=r"parameter adapter_upload_directory is .* cannot be made"):
        opened(tmp_path, directory=tmp_path / "a/b/7.safetensors/c")


def test_a_full_disk_is_ours_and_leaves_what_was_there(
    tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = opened(tmp_path)
    uploads.take(upload(7))

    def fill(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors_file.os, "replace", fill)
    with caplog.at_level(logging.ERROR), pytest.raises(ExecutorFailed) as refused:
        uploads.take(upload(7, 0.25))
    assert str(tmp_path) not in str(refused.value)
    assert "No space left on device" in caplog.text
    assert kept(uploads) == {"7": digest(0.5)}
