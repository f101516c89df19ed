"""Directories of adapters: what a name means now, what it meant before, and what no name ever reaches."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.packed_adapters import random_packed, taking_adapters, write_random_packed
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.errors import AdapterError, ConfigError
from trierarch.builder.packed_adapter import write_packed
from trierarch.builder.safetensors_file import write_safetensors
from trierarch.python_backend.adapters import directory as directory_module
from trierarch.python_backend.adapters.directory import AdapterDirectories
from trierarch.python_backend.errors import UnknownAdapter, UnusableAdapter

ENGINE = taking_adapters(tiny_manifest(tiny_architecture(family="LlamaForCausalLM")), max_rank=8)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine's folder with a folder of adapters; files of others lie beside it."""
    (tmp_path / "engine" / "adapters").mkdir(parents=True)
    (tmp_path / "shelf").mkdir()
    write_random_packed(tmp_path, "secret", ENGINE)
    return tmp_path / "engine"


@pytest.fixture
def shelf(engine: Path) -> Path:
    return engine.parent / "shelf"


@pytest.fixture
def found(engine: Path, shelf: Path) -> AdapterDirectories:
    return AdapterDirectories((shelf,), engine, ENGINE)


def test_what_lies_there_is_registered_at_once_and_gone_once_it_is_deleted(
    found: AdapterDirectories, shelf: Path
) -> None:
    assert found.names() == ()
    with pytest.raises(UnknownAdapter, match=r"^adapter is 'x': is not registered; none is"):
        found.find("x")
    tensors = write_random_packed(shelf, "x", ENGINE)
    adapter = found.find("x")
    assert (adapter.name, adapter.digest) == ("x", tensors.manifest.digest)
    assert adapter.read().manifest == tensors.manifest
    assert found.find("x") is adapter
    assert found.names() == ("x",)
    (shelf / "x.safetensors").unlink()
    with pytest.raises(UnknownAdapter):
        found.find("x")
    with pytest.raises(UnknownAdapter):
        found.look("x")
    assert adapter.read().manifest == tensors.manifest, "a version that was found stays"
    assert found.names() == ()


def test_a_replaced_file_is_another_version(found: AdapterDirectories, shelf: Path) -> None:
    first = write_random_packed(shelf, "x", ENGINE, seed=1)
    old = found.find("x")
    second = write_random_packed(shelf, "x", ENGINE, seed=2)
    assert found.look("x")[0] == second.manifest
    assert found.find("x").read().manifest == second.manifest
    assert old.read().manifest == first.manifest


def test_a_file_is_looked_at_once_for_each_version(
    found: AdapterDirectories, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_random_packed(shelf, "x", ENGINE)
    _, num_bytes = found.look("x")
    assert num_bytes == (shelf / "x.safetensors").stat().st_size
    monkeypatch.setattr(directory_module, "AdapterSource", None)
    assert found.look("x") == (found.find("x").manifest, num_bytes)


def test_the_engines_own_come_first(found: AdapterDirectories, engine: Path, shelf: Path) -> None:
    write_random_packed(shelf, "x", ENGINE, seed=1)
    own = write_random_packed(engine / "adapters", "x", ENGINE, seed=2)
    assert found.find("x").manifest == own.manifest
    assert found.names() == ("x",)


def test_an_engine_need_not_bring_any_and_other_directories_must_be_there(engine: Path, shelf: Path) -> None:
    (engine / "adapters").rmdir()
    assert AdapterDirectories((), engine, ENGINE).names() == ()
    with pytest.raises(ConfigError, match="is no directory; create it"):
        AdapterDirectories((shelf, shelf / "more"), engine, ENGINE)
    found = AdapterDirectories((shelf,), engine, ENGINE)
    write_random_packed(shelf, "x", ENGINE)
    shutil.rmtree(shelf)
    assert found.names() == ()
    with pytest.raises(UnknownAdapter):
        found.find("x")


def save_peft(folder: Path) -> None:
    """A LoRA of one matrix as PEFT saves it."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    arrays = {
        f"{module}.lora_A.weight": np.ones((2, 32), np.float32),
        f"{module}.lora_B.weight": np.ones((32, 2), np.float32),
    }
    write_safetensors(folder / "adapter_model.safetensors", arrays, {"format": "pt"})


def test_a_peft_directory_is_an_adapter_too(found: AdapterDirectories, shelf: Path) -> None:
    save_peft(shelf / "x")
    adapter = found.find("x")
    assert adapter.manifest.pieces == ("q",)
    assert adapter.read().arrays.keys() == {"layers.0.q.a", "layers.0.q.b"}
    assert found.names() == ("x",)
    (shelf / "x" / "adapter_model.safetensors").unlink()
    with pytest.raises(UnknownAdapter):
        found.find("x")


def test_a_draft_models_adapter_is_no_name_of_its_own(found: AdapterDirectories, shelf: Path) -> None:
    for name in ("x", "x.draft", "y.draft"):
        write_random_packed(shelf, name, ENGINE)
    assert found.names() == ("x", "y.draft")
    assert found.find("x.draft").name == "x.draft"


def test_an_unknown_name_is_told_some_that_are_known(found: AdapterDirectories, shelf: Path) -> None:
    for number in range(9):
        write_random_packed(shelf, f"a{number}", ENGINE)
    with pytest.raises(UnknownAdapter, match=r"name one of a0, a1, a2, a3, a4, \.\.\., leave it out") as caught:
        found.find("b")
    assert "b.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../secret", "/etc/passwd", "a/b", "a\\b", "..\\secret", "x\n", "x\0", " x", "x ", ".hidden", "-x",
        "é", "ａ", "x" * 129, "x" * 100_000, "%2e%2e", "x:y", "~root", "$HOME", "*", "secret.safetensors/..",
    ],
)  # fmt: skip
def test_nothing_but_a_plain_name_is_looked_up(found: AdapterDirectories, name: str) -> None:
    with pytest.raises(UnknownAdapter) as caught:
        found.find(name)
    assert len(str(caught.value)) < 400


@settings(max_examples=200, deadline=None)
@given(name=st.text(max_size=20) | st.lists(st.sampled_from(["..", ".", "/", "secret", "x"]), max_size=6).map("".join))
def test_no_name_leads_out(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "leads"
    if not root.exists():
        (root / "shelf").mkdir(parents=True)
        write_random_packed(root, "secret", ENGINE)
    with pytest.raises(UnknownAdapter):
        AdapterDirectories((root / "shelf",), root, ENGINE).find(name)


def test_names_differ_by_case(found: AdapterDirectories, shelf: Path) -> None:
    upper = write_random_packed(shelf, "X", ENGINE, seed=1)
    lower = write_random_packed(shelf, "x", ENGINE, seed=2)
    assert (found.find("X").digest, found.find("x").digest) == (upper.manifest.digest, lower.manifest.digest)


def as_link_out(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def as_relative_link_out(path: Path, secret: Path) -> None:
    path.symlink_to(Path("..") / secret.name)


def as_circle(path: Path, secret: Path) -> None:
    path.symlink_to(path.name)


def as_pipe(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def as_device(path: Path, secret: Path) -> None:
    path.symlink_to("/dev/zero")


def as_directory(path: Path, secret: Path) -> None:
    path.mkdir()


def as_rubbish(path: Path, secret: Path) -> None:
    path.write_bytes(b"not an adapter")


def as_nothing(path: Path, secret: Path) -> None:
    path.touch()


def as_others(path: Path, secret: Path) -> None:
    other = taking_adapters(tiny_manifest(tiny_architecture(hidden_size=64)))
    write_packed(random_packed(other), path)


@pytest.mark.parametrize(
    "make",
    [as_link_out, as_relative_link_out, as_circle, as_pipe, as_device, as_directory, as_rubbish, as_nothing, as_others],
)
def test_what_is_no_adapter_of_the_engine_within_the_directory_is_refused(
    found: AdapterDirectories, shelf: Path, make: Callable[[Path, Path], None]
) -> None:
    write_random_packed(shelf, "good", ENGINE)
    make(shelf / "bad.safetensors", shelf.parent / "secret.safetensors")
    for look in (found.find, found.look):
        with pytest.raises(UnusableAdapter, match=r"^adapter is 'bad': ") as caught:
            look("bad")
        assert str(shelf) not in str(caught.value), "paths of the server are nobody's affair"
    assert found.names() == ("bad", "good")
    assert found.find("good").name == "good"


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_the_files_of_a_peft_directory_must_lie_there_too(found: AdapterDirectories, shelf: Path, file: str) -> None:
    save_peft(shelf.parent / "elsewhere")
    save_peft(shelf / "x")
    (shelf / "x" / file).unlink()
    (shelf / "x" / file).symlink_to(shelf.parent / "elsewhere" / file)
    with pytest.raises(UnusableAdapter, match="leads out of its adapter directory"):
        found.find("x")
    (shelf / "y").symlink_to(shelf.parent / "elsewhere")
    with pytest.raises(UnusableAdapter, match="leads out of its adapter directory"):
        found.find("y")


def test_a_link_within_the_directory_and_a_linked_directory_are_fine(engine: Path, shelf: Path) -> None:
    (shelf.parent / "link").symlink_to(shelf)
    found = AdapterDirectories((shelf.parent / "link",), engine, ENGINE)
    first = write_random_packed(shelf, "x-1", ENGINE, seed=1)
    second = write_random_packed(shelf, "x-2", ENGINE, seed=2)
    (shelf / "x.safetensors").symlink_to("x-1.safetensors")
    assert found.find("x").digest == first.manifest.digest
    (shelf / "new").symlink_to("x-2.safetensors")
    (shelf / "new").rename(shelf / "x.safetensors")
    assert found.find("x").digest == second.manifest.digest
    (shelf.parent / "next").mkdir()
    third = write_random_packed(shelf.parent / "next", "x", ENGINE, seed=3)
    (shelf.parent / "new").symlink_to("next")
    (shelf.parent / "new").rename(shelf.parent / "link")
    assert found.find("x").digest == third.manifest.digest, "all are replaced at once"
    assert found.names() == ("x",)


def test_a_file_that_is_cut_short_while_it_is_known_fails_when_it_is_read(
    found: AdapterDirectories, shelf: Path
) -> None:
    path = shelf / "x.safetensors"
    write_random_packed(shelf, "x", ENGINE)
    adapter = found.find("x")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(AdapterError) as caught:
        adapter.read()
    assert str(shelf) not in str(caught.value)
    with pytest.raises(UnusableAdapter):
        found.find("x")


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_few_files_are_kept_open_for_many_adapters(found: AdapterDirectories, shelf: Path) -> None:
    tensors = random_packed(ENGINE, pieces=("q",), rank=1)
    write_packed(tensors, shelf / "a0.safetensors")
    for number in range(1, 300):
        shutil.copy(shelf / "a0.safetensors", shelf / f"a{number}.safetensors")
    gc.collect()
    before = num_descriptors()
    for name in found.names():
        found.look(name)
    assert num_descriptors() - before <= directory_module._MAX_OPEN
    held = [found.find(name) for name in found.names()]
    assert num_descriptors() - before >= 300
    assert held[0].read().manifest == held[-1].read().manifest == tensors.manifest
    held.clear()
    gc.collect()
    assert num_descriptors() - before <= directory_module._MAX_OPEN


def test_a_name_means_one_version_or_another_while_it_is_replaced_by_others(
    found: AdapterDirectories, shelf: Path
) -> None:
    versions = [random_packed(ENGINE, pieces=("q",), seed=seed) for seed in range(3)]
    digests = {version.manifest.digest for version in versions}
    write_packed(versions[0], shelf / "x.safetensors")
    is_over = threading.Event()

    def replace() -> None:
        while not is_over.is_set():
            for version in versions:
                write_packed(version, shelf / "x.safetensors")

    def ask(_: int) -> set[str]:
        seen = set()
        for _ in range(50):
            with suppress(UnusableAdapter):  # replaced again and again
                adapter = found.find("x")
                tensors: AdapterTensors = adapter.read()
                assert tensors.manifest.digest == adapter.digest
                seen.add(adapter.digest)
        return seen

    replacer = threading.Thread(target=replace)
    replacer.start()
    try:
        with ThreadPoolExecutor(3) as askers:
            seen = set[str]().union(*askers.map(ask, range(3)))
    finally:
        is_over.set()
        replacer.join()
    assert seen
    assert seen <= digests
