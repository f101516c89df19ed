"""Parameters, roles and auto-complete: what a three-line config.pbtxt becomes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trierarch.builder.errors import ConfigError
from trierarch.python_backend.triton.auto_complete import complete
from trierarch.python_backend.triton.contract import CONTRACTS, MAX_BATCH_SIZE, Role
from trierarch.python_backend.triton.model_config import is_decoupled, role_of
from trierarch.python_backend.triton.model_context import ModelContext
from trierarch.python_backend.triton.parameters import Parameters
from trierarch.python_backend.triton.path_list import text_of


class FakeModelConfig:
    """What auto-complete sees of pb_utils.ModelConfig."""

    def __init__(self, name: str, **fields: Any) -> None:
        self.config: dict[str, Any] = {"name": name, "max_batch_size": 0, "input": [], "output": []} | fields

    def as_dict(self) -> dict[str, Any]:
        return self.config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        self.config["max_batch_size"] = max_batch_size

    def add_input(self, tensor: dict[str, Any]) -> None:
        assert set(tensor) == {"name", "data_type", "dims", "optional"}
        self.config["input"].append(tensor)

    def add_output(self, tensor: dict[str, Any]) -> None:
        assert set(tensor) == {"name", "data_type", "dims"}
        self.config["output"].append(tensor)

    def set_model_transaction_policy(self, policy: dict[str, bool]) -> None:
        self.config["model_transaction_policy"] = policy


def parameters(**values: str) -> dict[str, Any]:
    return {"parameters": {name: {"string_value": value} for name, value in values.items()}}


@pytest.mark.parametrize("role", Role)
def test_a_name_is_enough(role: Role) -> None:
    config = complete(FakeModelConfig(role.value)).as_dict()
    contract = CONTRACTS[role]
    assert config["max_batch_size"] == (MAX_BATCH_SIZE if contract.is_batched else 0)
    assert [tensor["name"] for tensor in config["input"]] == [tensor.name for tensor in contract.inputs]
    assert config["output"][0]["data_type"].startswith("TYPE_")
    assert is_decoupled(config) == contract.may_decouple


def test_what_the_file_says_stays() -> None:
    config = complete(
        FakeModelConfig("tensorrt_llm", max_batch_size=4, model_transaction_policy={"decoupled": False})
    ).as_dict()
    assert config["max_batch_size"] == 4
    assert not is_decoupled(config)


def test_a_role_by_parameter() -> None:
    assert role_of({"name": "llama", **parameters(role="tensorrt_llm")}) is Role.TENSORRT_LLM


def test_no_role_is_an_error_that_lists_them() -> None:
    with pytest.raises(ConfigError, match=r"'llama' has no role.*tensorrt_llm, preprocessing"):
        role_of({"name": "llama"})


def test_a_role_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'llama': parameter role is 'router'; name one of tensorrt_llm, "):
        role_of({"name": "llama", **parameters(role="router")})


def test_bad_parameters_are_found_when_the_configuration_is_completed() -> None:
    with pytest.raises(ConfigError, match="parameter stats_check_period_ms is '0'"):
        complete(FakeModelConfig("preprocessing", **parameters(stats_check_period_ms="0")))


def test_a_stub_that_is_asked_nothing_imports_nothing_that_validates() -> None:
    code = "import sys, trierarch.python_backend.model as m; print([n for n in ('pydantic', 'numpy', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_parameters_are_typed() -> None:
    read = Parameters.from_config(
        {
            "name": "m",
            **parameters(exclude_input_in_output="true", cancellation_check_period_ms="50", add_special_tokens=""),
        }
    )
    assert read == Parameters(exclude_input_in_output=True, cancellation_check_period_ms=50)
    assert Parameters.from_config({"name": "m", **parameters(FORCE_CPU_ONLY_INPUT_TENSORS="no")}) == Parameters()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpt_model_path", "/engines/x"),
        ("stats_check_period_ms", "0"),
        ("accumulate_tokens", "perhaps"),
        ("kv_cache_host_memory_bytes", "-1"),
    ],
)
def test_a_bad_parameter_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"model 'm': parameter {name} is '{value}'"):
        Parameters.from_config({"name": "m", **parameters(**{name: value})})


@pytest.mark.parametrize("paths", [["a"], ["a", "/b/c d"], ["[odd", "a"], ["a:b", "c"], []])
def test_lists_of_paths_are_read_as_they_are_written(paths: list[str]) -> None:
    config = {"name": "tensorrt_llm", **parameters(adapter_directories=text_of(paths))}
    assert Parameters.from_config(config).adapter_directories == tuple(map(Path, paths))


def test_one_list_is_written_as_in_path_and_read_as_json_too() -> None:
    assert text_of(["a", "b"]) == f"a{os.pathsep}b"
    config = {"name": "tensorrt_llm", **parameters(adapter_directories='["a", "b"]')}
    assert Parameters.from_config(config).adapter_directories == (Path("a"), Path("b"))


@pytest.mark.parametrize("value", ["[", "[1]", '[{"a": 1}]'])
def test_a_damaged_list_is_named(value: str) -> None:
    with pytest.raises(ConfigError, match="parameter adapter_directories"):
        Parameters.from_config({"name": "tensorrt_llm", **parameters(adapter_directories=value)})


def test_paths_are_relative_to_the_repository_also_where_a_copy_of_it_is_served(tmp_path: Path) -> None:
    (tmp_path / "repository/french/1").mkdir(parents=True)
    copy = tmp_path / "run/completed/french"
    copy.mkdir(parents=True)
    (copy / "1").symlink_to(tmp_path / "repository/french/1")
    context = ModelContext(
        name="french", version="1", engine=copy / "1/engine", parameters=Parameters(), is_decoupled=True
    )
    assert context.in_repository(Path("../shelf")).resolve() == tmp_path / "shelf"
    assert context.in_repository(Path("/shelf")) == Path("/shelf")
