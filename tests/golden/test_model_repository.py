"""The committed model_repository/ is what compose writes, so that it serves as it stands once an engine lies in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from trierarch.ensembles.compose import ComposeOptions, model_configs, write_configs

COMMITTED = Path(__file__).parents[2] / "model_repository"


def _tree(repository: Path) -> dict[str, str]:
    """Relative path -> a file's text, or where a link points."""
    return {
        str(path.relative_to(repository)): os.readlink(path) if path.is_symlink() else path.read_text(encoding="utf-8")
        for path in repository.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_the_committed_repository_is_what_compose_writes(tmp_path: Path, regenerate: bool) -> None:
    write_configs(tmp_path, ComposeOptions())
    if regenerate:
        for name, content in _tree(tmp_path).items():
            if not (tmp_path / name).is_symlink():
                (COMMITTED / name).write_text(content, encoding="utf-8")
    committed = _tree(COMMITTED)
    # The place of the engine itself, which whoever serves the repository puts there.
    committed = {name: text for name, text in committed.items() if not name.startswith("tensorrt_llm/1/engine")}
    committed.pop("tensorrt_llm/1/.gitkeep")
    assert committed == _tree(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        ComposeOptions(),
        ComposeOptions(decoupled=False),
        ComposeOptions(exclude_input_in_output=True, accumulate_tokens=True),
        ComposeOptions(
            adapters=(Path("../shelf"), Path("a:b")),
            adapter_models=("french", "italian"),
            adapter_uploads=False,
            adapter_upload_directory=Path("../uploads"),
            kv_host_bytes=1 << 30,
            kv_disk_directory=Path("../kept"),
        ),
    ],
)
def test_a_config_read_back_is_the_config_written(options: ComposeOptions) -> None:
    for config in model_configs(options):
        parsed = text_format.Parse(config.to_pbtxt(), model_config_pb2.ModelConfig())
        assert parsed == config.to_message()


def test_a_model_is_three_lines() -> None:
    lines = (COMMITTED / "tensorrt_llm/config.pbtxt").read_text(encoding="utf-8").splitlines()
    assert sorted(line.split(":")[0].split(" ")[0] for line in lines) == ["backend", "instance_group", "name"]
