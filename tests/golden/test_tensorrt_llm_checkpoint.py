"""TensorRT-LLM checkpoints against transformers: their tensors alone, multiplied out, give the model's own logits.

And against nvidia-modelopt, whose TensorRT-LLM checkpoints of the families that it knows have the same tensors.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.trtllm_checkpoint import checkpoint_logits, read_ranks
from support.trtllm_models import (
    ENGINE_FAMILIES,
    build_for,
    prompt,
    reference_logits,
    relative_errors,
    save_random,
    windows_of,
)
from trierarch.builder.manifest import DType

SPLITS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)]
NO_PIPELINE = ("phi3", "phi3-longrope")


@pytest.fixture(scope="module", params=ENGINE_FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, torch.Tensor]:
    """Its name, a checkpoint, and transformers' logits of `prompt()`."""
    directory = tmp_path_factory.mktemp(request.param)
    model = save_random(request.param, directory / "hf")
    return request.param, directory / "hf", reference_logits(model, prompt())


@pytest.mark.parametrize(
    ("tensor", "pipeline"), SPLITS, ids=[f"tp{tensor}-pp{pipeline}" for tensor, pipeline in SPLITS]
)
def test_the_tensors_alone_give_transformers_logits(
    tensor: int, pipeline: int, family: tuple[str, Path, torch.Tensor], tmp_path: Path
) -> None:
    name, checkpoint, reference = family
    if pipeline > 1 and name in NO_PIPELINE:
        pytest.skip("TensorRT-LLM's engines of Phi-3 have no pipeline")
    manifest = build_for(
        checkpoint,
        tmp_path / "engine",
        dtype=DType.FLOAT32,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
    )
    logits = checkpoint_logits(tmp_path / "engine" / "checkpoint", prompt(), windows_of(manifest))
    assert relative_errors(logits, reference).max() < 1e-5
    assert reference.std(dim=1).min() > 0.1  # a uniform answer would be near anything


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize(
    ("family", "decoder_type"), [("llama", "llama"), ("llama-bias", "llama"), ("mistral", "llama"), ("qwen3", "qwen")]
)
def test_modelopt_writes_the_same_tensors(
    family: str, decoder_type: str, tensor: int, pipeline: int, tmp_path: Path
) -> None:
    # It chunks an odd vocabulary as it comes, and shares one that is tied.
    model = save_random(family, tmp_path / "hf", vocab_size=320, tie_word_embeddings=False)
    build_for(
        tmp_path / "hf",
        tmp_path / "engine",
        dtype=DType.FLOAT16,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
    )
    config, ranks = read_ranks(tmp_path / "engine" / "checkpoint")
    exported = exports(model, decoder_type, tensor, pipeline)
    assert len(ranks) == len(exported) == tensor * pipeline
    for ours, (theirs, tensors) in zip(ranks, exported, strict=True):
        assert ours.keys() == tensors.keys()
        for name, tensor_ in tensors.items():
            assert ours[name].dtype == tensor_.dtype, name
            assert torch.equal(ours[name], tensor_), name
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_size"):
            assert config[key] == theirs[key]
        for key in (
            "intermediate_size",
            "vocab_size",
            "hidden_act",
            "architecture",
            "position_embedding_type",
            "mapping",
        ):
            assert config[key] == theirs[key]


def exports(model: Any, decoder_type: str, tensor: int, pipeline: int) -> list[tuple[dict[str, Any], Any]]:
    """What modelopt writes for each rank, in order."""
    model.config.architectures = [type(model).__name__]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from modelopt.torch.export.model_config_export import torch_to_tensorrt_llm_checkpoint

        found = torch_to_tensorrt_llm_checkpoint(model, decoder_type, torch.float16, tensor, pipeline)
        return sorted(((config, dict(tensors)) for config, tensors, _ in found), key=lambda one: one[0]["rank"])


def test_norms_of_a_16_bit_checkpoint_are_of_its_type_and_routers_are_not(tmp_path: Path) -> None:
    save_random("mixtral", tmp_path / "hf")
    build_for(tmp_path / "hf", tmp_path / "engine", dtype=DType.BFLOAT16)
    tensors = load_file(str(tmp_path / "engine" / "checkpoint" / "rank0.safetensors"))
    routers = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert routers == {f"transformer.layers.{index}.mlp.router.weight" for index in range(4)}
    assert {tensor.dtype for name, tensor in tensors.items() if name not in routers} == {torch.bfloat16}
