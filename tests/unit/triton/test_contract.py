"""The tables hold every tensor that TensorRT-LLM's repository declares, with the same type and dims."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trierarch.python_backend.triton.contract import CONTRACTS, ENSEMBLE, Contract, DataType, Role, Tensor
from trierarch.python_backend.triton.refusals import REFUSALS

RECORDED = Path(__file__).with_name("trtllm_contract.txt")
LINE = re.compile(r"(\w+) (in|out) (\w+) (\w+)\[([-\d,]+)\]( opt)?")
OURS = {Role.ADAPTER}
"""Roles that TensorRT-LLM's repository knows nothing of."""
MODELS: dict[str, Contract] = {
    **{role: contract for role, contract in CONTRACTS.items() if role not in OURS},
    "ensemble": ENSEMBLE,
}

# Our tensorrt_llm also takes text, so what its token door requires may be left out.
OPTIONAL_HERE = {"input_lengths", "request_output_len"}


def recorded(model: str, direction: str) -> list[Tensor]:
    tensors = []
    for line in RECORDED.read_text().splitlines():
        match = LINE.fullmatch(line)
        if match and match[1] == model and match[2] == direction:
            dims = tuple(int(dim) for dim in match[5].split(","))
            is_optional = bool(match[6]) or (model == "tensorrt_llm" and match[3] in OPTIONAL_HERE)
            tensors.append(Tensor(match[3], DataType(match[4]), dims, optional=is_optional))
    return tensors


@pytest.mark.parametrize("model", MODELS)
def test_every_recorded_tensor_is_declared_alike(model: str) -> None:
    contract = MODELS[model]
    inputs, outputs = recorded(model, "in"), recorded(model, "out")
    assert len(inputs) >= 2
    assert outputs
    assert set(inputs) <= set(contract.inputs)
    assert set(outputs) <= set(contract.outputs)


@pytest.mark.parametrize("model", MODELS)
def test_additions_never_oblige_a_client_that_does_not_know_them(model: str) -> None:
    known = {tensor.name for tensor in recorded(model, "in")}
    assert all(tensor.optional for tensor in MODELS[model].inputs if tensor.name not in known)


@pytest.mark.parametrize("model", MODELS)
def test_names_are_unique(model: str) -> None:
    for tensors in (MODELS[model].inputs, MODELS[model].outputs):
        names = [tensor.name for tensor in tensors]
        assert len(set(names)) == len(names)


def test_outputs_keep_the_recorded_order() -> None:
    for model, contract in MODELS.items():
        names = [tensor.name for tensor in contract.outputs]
        order = [names.index(tensor.name) for tensor in recorded(model, "out")]
        assert order == sorted(order), model


def test_the_main_model_takes_and_gives_whatever_the_ensemble_does() -> None:
    main = CONTRACTS[Role.TENSORRT_LLM]
    inputs = {tensor.name: (tensor.dtype, tensor.dims) for tensor in main.inputs}
    outputs = {tensor.name: (tensor.dtype, tensor.dims) for tensor in main.outputs}
    for tensor in ENSEMBLE.inputs:
        assert inputs[tensor.name] == (tensor.dtype, tensor.dims)
    for tensor in ENSEMBLE.outputs:
        assert outputs[tensor.name] == (tensor.dtype, tensor.dims)


def test_speculation_has_the_same_options_on_every_model_that_generates() -> None:
    for role in (Role.TENSORRT_LLM, Role.TENSORRT_LLM_BLS):
        tensors = {tensor.name: tensor for tensor in CONTRACTS[role].inputs}
        assert tensors["max_draft_tokens"] == Tensor("max_draft_tokens", DataType.INT32, (1,), optional=True)
        assert tensors["drafters"] == Tensor("drafters", DataType.STRING, (-1,), optional=True)


def test_refusals_name_tensors_that_exist() -> None:
    declared = {tensor.name for contract in MODELS.values() for tensor in contract.inputs}
    assert set(REFUSALS) <= declared


def test_an_adapter_has_both_doors() -> None:
    assert CONTRACTS[Role.ADAPTER] == CONTRACTS[Role.TENSORRT_LLM]
