"""An adapter becomes a model of a repository that is already there."""

from __future__ import annotations

from pathlib import Path

import pytest

from trierarch.builder.errors import ConfigError
from trierarch.ensembles.adapter_model import adapter_directories, add_adapter_model, remove_adapter_model
from trierarch.ensembles.compose import ComposeOptions, write_configs


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    write_configs(path, ComposeOptions(adapters=(Path("../shelf"), Path("/other")), decoupled=False))
    return path


def test_it_is_what_compose_would_have_written(repository: Path, tmp_path: Path) -> None:
    composed = tmp_path / "composed"
    options = ComposeOptions(adapters=(Path("../shelf"), Path("/other")), decoupled=False, adapter_models=("french",))
    write_configs(composed, options)
    assert add_adapter_model(repository, "french")
    assert (repository / "french/config.pbtxt").read_text() == (composed / "french/config.pbtxt").read_text()
    assert (repository / "french/1/.gitkeep").is_file()
    assert not add_adapter_model(repository, "french")
    assert not list(repository.glob(".*"))


def test_directories_are_where_they_are(repository: Path, tmp_path: Path) -> None:
    assert [path.resolve() for path in adapter_directories(repository)] == [tmp_path / "shelf", Path("/other")]


def test_it_goes_again(repository: Path) -> None:
    add_adapter_model(repository, "french")
    remove_adapter_model(repository, "french")
    remove_adapter_model(repository, "french")
    assert not (repository / "french").exists()


def test_another_model_is_never_removed(repository: Path) -> None:
    with pytest.raises(ConfigError, match="'ensemble' is another model"):
        remove_adapter_model(repository, "ensemble")
    assert (repository / "ensemble/config.pbtxt").is_file()


def test_another_model_is_never_replaced(repository: Path) -> None:
    before = (repository / "ensemble/config.pbtxt").read_text()
    with pytest.raises(ConfigError, match="'ensemble' is another model"):
        add_adapter_model(repository, "ensemble")
    assert (repository / "ensemble/config.pbtxt").read_text() == before


def test_it_needs_a_repository(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name a repository that trierarch compose wrote"):
        add_adapter_model(tmp_path, "french")
    assert list(tmp_path.iterdir()) == []
