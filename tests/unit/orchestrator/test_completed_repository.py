"""A repository completed ahead of Triton says what auto-complete would have said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from trierarch.builder.errors import ConfigError
from trierarch.ensembles.compose import ComposeOptions, write_configs
from trierarch.ensembles.model_config import CONFIG_NAME
from trierarch.orchestrator.completed_repository import complete_repository
from trierarch.orchestrator.kv_tiers import KvTiers
from trierarch.python_backend.triton.contract import CONTRACTS, MAX_BATCH_SIZE, Role


def read(path: Path) -> Any:
    return text_format.Parse((path / CONFIG_NAME).read_text(), model_config_pb2.ModelConfig())


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    write_configs(path, ComposeOptions(adapter_models=(Role.ADAPTER,), llmapi=Role.LLMAPI, vllm=Role.VLLM))
    return path


@pytest.mark.parametrize("role", Role)
def test_a_model_gets_its_contract(repository: Path, tmp_path: Path, role: Role) -> None:
    assert complete_repository(repository, tmp_path / "completed")
    config = read(tmp_path / "completed" / role)
    contract = CONTRACTS[role]
    assert config.max_batch_size == (MAX_BATCH_SIZE if contract.is_batched else 0)
    assert [(one.name, one.optional) for one in config.input] == [(one.name, one.optional) for one in contract.inputs]
    assert [one.name for one in config.output] == [one.name for one in contract.outputs]
    assert config.model_transaction_policy.decoupled == contract.may_decouple


def test_what_the_file_says_stays(repository: Path, tmp_path: Path) -> None:
    (repository / Role.TENSORRT_LLM / CONFIG_NAME).write_text(
        'backend: "trierarch" max_batch_size: 4 model_transaction_policy { decoupled: false }'
        ' parameters { key: "exclude_input_in_output" value { string_value: "true" } }'
        ' input { name: "streaming" data_type: TYPE_BOOL dims: 1 }'
    )
    complete_repository(repository, tmp_path / "completed")
    config = read(tmp_path / "completed" / Role.TENSORRT_LLM)
    assert config.name == Role.TENSORRT_LLM
    assert (config.max_batch_size, config.model_transaction_policy.decoupled) == (4, False)
    assert config.parameters["exclude_input_in_output"].string_value == "true"
    assert [one.name for one in config.input].count("streaming") == 1
    assert not config.input[0].optional


def test_versions_and_the_ensemble_are_there(repository: Path, tmp_path: Path) -> None:
    complete_repository(repository, tmp_path / "completed")
    for model in repository.iterdir():
        assert (tmp_path / "completed" / model.name / "1").resolve() == (model / "1").resolve()
    assert read(tmp_path / "completed" / "ensemble") == read(repository / "ensemble")


def test_a_model_of_another_backend_leaves_all_to_triton(repository: Path, tmp_path: Path) -> None:
    (repository / "mine").mkdir()
    (repository / "mine" / CONFIG_NAME).write_text('backend: "onnxruntime"')
    assert not complete_repository(repository, tmp_path / "completed")
    assert not (tmp_path / "completed").exists()


def test_a_configuration_that_cannot_be_read_is_named(repository: Path, tmp_path: Path) -> None:
    (repository / Role.TENSORRT_LLM / CONFIG_NAME).write_text("no such field: 1")
    with pytest.raises(ConfigError, match=r"tensorrt_llm/config\.pbtxt cannot be read .*trierarch compose"):
        complete_repository(repository, tmp_path / "completed")


def test_adapters_are_added_where_they_are_served(repository: Path, tmp_path: Path) -> None:
    shelf, uploads = tmp_path / "shelf", tmp_path / "uploads"
    complete_repository(repository, tmp_path / "completed", (shelf,), uploads)
    main, bls, adapter = (
        read(tmp_path / "completed" / role).parameters
        for role in (Role.TENSORRT_LLM, Role.TENSORRT_LLM_BLS, Role.ADAPTER)
    )
    assert main["adapter_directories"].string_value == adapter["adapter_directories"].string_value == str(shelf)
    assert main["adapter_upload_directory"].string_value == str(uploads)
    assert not bls
    assert "adapter_upload_directory" not in adapter


def test_what_the_file_says_of_adapters_stays(repository: Path, tmp_path: Path) -> None:
    (repository / Role.TENSORRT_LLM / CONFIG_NAME).write_text(
        'backend: "trierarch"'
        ' parameters { key: "adapter_directories" value { string_value: "../own" } }'
        ' parameters { key: "adapter_upload_directory" value { string_value: "../sent" } }'
    )
    complete_repository(repository, tmp_path / "completed", (tmp_path / "shelf",), tmp_path / "uploads")
    parameters = read(tmp_path / "completed" / Role.TENSORRT_LLM).parameters
    assert parameters["adapter_directories"].string_value == f"../own:{tmp_path / 'shelf'}"
    assert parameters["adapter_upload_directory"].string_value == "../sent"


def test_prefixes_are_kept_where_the_engine_runs_unless_the_file_says_where(repository: Path, tmp_path: Path) -> None:
    (repository / "second").mkdir()
    (repository / "second" / CONFIG_NAME).write_text(
        'backend: "trierarch"'
        ' parameters { key: "role" value { string_value: "tensorrt_llm" } }'
        ' parameters { key: "prefix_cache_directory" value { string_value: "../mine" } }'
    )
    complete_repository(repository, tmp_path / "completed", prefixes=tmp_path / "kept")
    name = "prefix_cache_directory"
    main = read(tmp_path / "completed" / Role.TENSORRT_LLM).parameters
    assert main[name].string_value == str(tmp_path / "kept" / Role.TENSORRT_LLM)
    assert read(tmp_path / "completed" / "second").parameters[name].string_value == "../mine"
    assert name not in read(tmp_path / "completed" / Role.TENSORRT_LLM_BLS).parameters


def test_tiers_behind_the_kv_cache_are_what_was_asked_for_last(repository: Path, tmp_path: Path) -> None:
    config = repository / Role.TENSORRT_LLM / CONFIG_NAME
    config.write_text(
        'backend: "trierarch"'
        ' parameters { key: "kv_cache_host_memory_bytes" value { string_value: "5" } }'
        ' parameters { key: "kv_cache_disk_bytes" value { string_value: "7" } }'
    )
    complete_repository(repository, tmp_path / "as it says")
    read_back = read(tmp_path / "as it says" / Role.TENSORRT_LLM).parameters
    assert read_back["kv_cache_host_memory_bytes"].string_value == "5"
    tiers = KvTiers.parse("1GiB", tmp_path / "kept", None)
    complete_repository(repository, tmp_path / "completed", tiers=tiers)
    parameters = read(tmp_path / "completed" / Role.TENSORRT_LLM).parameters
    assert parameters["kv_cache_host_memory_bytes"].string_value == str(1 << 30)
    own = tmp_path / "kept" / Role.TENSORRT_LLM
    assert parameters["kv_cache_disk_directory"].string_value == str(own)
    assert parameters["kv_cache_disk_bytes"].string_value == "7"
    assert "kv_cache_host_memory_bytes" not in read(tmp_path / "completed" / Role.TENSORRT_LLM_BLS).parameters


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("1GiB", None, "1GiB"), "of no directory: name one with --kv-disk-directory"),
        ((None, Path("kept"), None), "give it some with --kv-host-bytes, such as 256MiB"),
        (("much", None, None), "'much' is no size: write bytes, or a number and a unit"),
    ],
)
def test_tiers_that_cannot_be_are_refused_with_the_remedy(
    words: tuple[str | None, Path | None, str | None], remedy: str
) -> None:
    with pytest.raises(ConfigError, match=remedy):
        KvTiers.parse(*words)
