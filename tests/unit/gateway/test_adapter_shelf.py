"""Adapters that clients load and unload, by name and never by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trierarch.builder.errors import ConfigError
from trierarch.orchestrator.gateway.adapter_shelf import AdapterShelf
from trierarch.orchestrator.gateway.errors import ApiError


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    store, served = tmp_path / "store", tmp_path / "served"
    (store / "french").mkdir(parents=True)
    (store / "french" / "adapter_config.json").write_text("{}")
    (store / "german.safetensors").write_bytes(b"packed")
    served.mkdir()
    (served / "own.safetensors").write_bytes(b"the operator's")
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    return store, served


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def status(call: Any, body: Any) -> int:
    with pytest.raises(ApiError) as caught:
        call(body)
    return caught.value.status


def test_loading_copies_and_unloading_takes_away(places: tuple[Path, Path]) -> None:
    store, served = places
    shelf = AdapterShelf.open(store, served)
    assert shelf.load({"lora_name": "french"}) == "french"
    assert shelf.load({"lora_name": "german"}) == "german"
    assert names(served) == ["french", "german.safetensors", "own.safetensors"]
    (store / "german.safetensors").write_bytes(b"new")
    shelf.load({"lora_name": "german"})
    assert (served / "german.safetensors").read_bytes() == b"new"
    shelf.unload({"lora_name": "french"})
    shelf.unload({"lora_name": "german"})
    assert names(served) == ["own.safetensors"]


def test_what_is_the_operators_stays(places: tuple[Path, Path]) -> None:
    shelf = AdapterShelf.open(*places)
    assert status(shelf.unload, {"lora_name": "own"}) == 404
    assert status(shelf.load, {"lora_name": "own"}) == 404
    assert names(places[1]) == ["own.safetensors"]


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "..", ".", "", "a/b", "french/../french", "x\0y", None, 7, ["french"]]
)
def test_no_path_comes_in(places: tuple[Path, Path], name: Any) -> None:
    shelf = AdapterShelf.open(*places)
    assert status(shelf.load, {"lora_name": name}) == 400
    assert status(shelf.unload, {"lora_name": name}) == 400
    assert status(shelf.load, {"lora_name": "french", "lora_path": "/etc"}) == 400


@given(st.text())
def test_no_name_writes_anything_but_adapters(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.mktemp("shelf")
    (root / "store").mkdir()
    (root / "served").mkdir()
    shelf = AdapterShelf.open(root / "store", root / "served")
    assert status(shelf.load, {"lora_name": name}) in (400, 404)
    assert names(root) == ["served", "store"]
    assert names(root / "served") == []


def test_without_a_store_nobody_loads() -> None:
    assert status(AdapterShelf.open(None, None).load, {"lora_name": "french"}) == 404


def test_places_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--adapter-store"):
        AdapterShelf.open(tmp_path / "none", tmp_path)
