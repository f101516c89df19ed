"""Quantised checkpoints for TensorRT-LLM: read back and multiplied out, they are as near to the model as their format is."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.checkpoints import small_tokenizer
from support.trtllm_checkpoint import checkpoint_logits, read_ranks
from support.trtllm_facts import fields
from support.trtllm_models import (
    WIDE,
    build_for,
    record_of,
    reference_logits,
    relative_errors,
    save_random,
    windows_of,
)
from trierarch.builder.evaluation_text import BUNDLED
from trierarch.builder.manifest import DType, EngineManifest
from trierarch.builder.tensorrt_llm.dequantized import apply_nvfp4, rounded
from trierarch.builder.tensorrt_llm.weight_only import rounded as rounded_weight

# Relative errors of a random model's logits that each format is allowed, and that it has at least: what is not quantised
# would be nearer. Measured on these models, and rounded down and up.
BOUNDS = {"fp8": (0.05, 0.25), "int8_sq": (0.01, 0.15), "int4_awq": (0.1, 0.6), "nvfp4": (0.1, 0.7)}
CASES = [
    ("llama", "fp8", 1, 1),
    ("llama", "fp8", 2, 2),
    ("llama", "int8_sq", 1, 1),
    ("llama", "int8_sq", 2, 1),
    ("llama", "int4_awq", 2, 1),
    ("llama", "nvfp4", 1, 1),
    ("llama", "nvfp4", 2, 2),
    ("qwen2", "fp8", 2, 1),
    ("qwen2", "int8_sq", 2, 1),
    ("qwen3", "fp8", 2, 1),
    ("qwen3", "nvfp4", 2, 1),
    ("mistral", "fp8", 2, 1),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little to calibrate on: how well it is done is not what these tests are about."""
    path = tmp_path_factory.mktemp("text") / "short.txt"
    path.write_text(BUNDLED.read_text(encoding="utf-8")[:600], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokens(text: Path) -> list[int]:
    """Of what is calibrated on: activations beyond what was seen would be clipped."""
    ids: list[int] = small_tokenizer().encode(text.read_text(encoding="utf-8")).ids
    return ids[:100]


def settings(text: Path, **options: Any) -> dict[str, Any]:
    return {"dtype": DType.BFLOAT16, "accuracy_check": False, "accuracy_text": text, "max_seq_len": 256, **options}


@pytest.fixture(scope="module")
def models(tokens: list[int], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, torch.Tensor]]:
    """A checkpoint of each family, and transformers' logits of `tokens`."""

    @cache
    def model(name: str) -> tuple[Path, torch.Tensor]:
        directory = tmp_path_factory.mktemp(name) / "hf"
        model = save_random(name, directory, **WIDE, vocab_size=320, tie_word_embeddings=False)
        return directory, reference_logits(model, tokens)

    return model


@pytest.fixture(scope="module")
def family(models: Callable[[str], tuple[Path, torch.Tensor]]) -> tuple[Path, torch.Tensor]:
    return models("llama")


@pytest.mark.parametrize(
    ("name", "quantization", "tensor", "pipeline"), CASES, ids=[f"{one}-{two}-tp{x}-pp{y}" for one, two, x, y in CASES]
)
def test_a_calibrated_checkpoint_is_as_near_as_its_format(
    name: str,
    quantization: str,
    tensor: int,
    pipeline: int,
    models: Callable[[str], tuple[Path, torch.Tensor]],
    tokens: list[int],
    text: Path,
    tmp_path: Path,
) -> None:
    checkpoint, reference = models(name)
    options = settings(text, quantization=quantization, tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
    manifest = build_for(checkpoint, tmp_path / "engine", **options)
    folder = tmp_path / "engine" / "checkpoint"
    errors = relative_errors(checkpoint_logits(folder, tokens, windows_of(manifest)), reference)
    least, most = BOUNDS[quantization]
    assert least < errors.median() < most
    config, ranks = read_ranks(folder)
    assert len(ranks) == tensor * pipeline
    assert config["quantization"]["quant_algo"] == record_of(manifest).quant_algo
    assert config["quantization"].keys() <= fields("1.2", "QuantConfig").keys()
    assert manifest.is_quantized


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_two_calibrations_give_the_same_bytes(
    version: str, family: tuple[Path, torch.Tensor], text: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        build_for(family[0], tmp_path / name, version, **settings(text, quantization="fp8"))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) > 4
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_keys_and_values_in_fp8_have_their_scales(
    family: tuple[Path, torch.Tensor], text: Path, tmp_path: Path
) -> None:
    manifest = build_for(family[0], tmp_path / "engine", **settings(text, kv_cache_dtype="fp8"))
    config, (tensors,) = read_ranks(tmp_path / "engine" / "checkpoint")
    assert config["quantization"]["kv_cache_quant_algo"] == "FP8"
    assert config["quantization"]["quant_algo"] is None
    scales = [name for name in tensors if name.endswith("attention.kv_cache_scaling_factor")]
    assert len(scales) == 4
    assert all(tensors[name].item() > 0 for name in scales)
    assert manifest.kv_cache.bytes_per_token == 2 * 4 * 2 * 64
    # TensorRT engines take no type of keys and values when they are loaded.
    assert "dtype" not in record_of(manifest).llm_args["kv_cache_config"]  # type: ignore[operator]


@pytest.mark.parametrize("bits", [8, 4])
def test_weight_only_checkpoints_leave_rounding_to_tensorrt_llm(
    bits: int, family: tuple[Path, torch.Tensor], tokens: list[int], text: Path, tmp_path: Path
) -> None:
    checkpoint, reference = family
    build_for(checkpoint, tmp_path / "plain", **settings(text))
    manifest = build_for(checkpoint, tmp_path / "engine", **settings(text, quantization=f"int{bits}"))
    assert record_of(manifest).quant_algo == f"W{bits}A16"
    config, (tensors,) = read_ranks(tmp_path / "engine" / "checkpoint")
    assert config["quantization"] == {"quant_algo": f"W{bits}A16", "kv_cache_quant_algo": None}
    (plain,) = read_ranks(tmp_path / "plain" / "checkpoint")[1]
    assert all(torch.equal(tensors[name], plain[name]) for name in plain)
    errors = relative_errors(checkpoint_logits(tmp_path / "plain" / "checkpoint", tokens), reference)
    assert errors.max() < 0.05


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_weights_follows_the_kernels(bits: int) -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    weight[3, 7] = 9.0
    largest = 2 ** (bits - 1)
    back = rounded_weight(weight, bits)
    for row, kept in zip(weight, back, strict=True):
        scale = row.abs().max().item() / largest
        for value, found in zip(row.tolist(), kept.tolist(), strict=True):
            code = 0 if scale == 0 else max(-largest, min(largest - 1, round(value / scale)))
            assert found == pytest.approx(code * scale, rel=1e-5, abs=1e-7)


# The PyTorch flow.


@pytest.fixture(scope="module")
def exported(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, EngineManifest]:
    """An NVFP4 engine for 1.3, the model it was made of, and its manifest."""
    directory = tmp_path_factory.mktemp("nvfp4")
    model = save_random("llama", directory / "hf", **WIDE)
    manifest = build_for(directory / "hf", directory / "engine", "1.3", **settings(text, quantization="nvfp4"))
    return directory / "engine", model, manifest


def test_an_nvfp4_export_computes_what_its_ranks_do(
    exported: tuple[Path, Any, EngineManifest], tokens: list[int], text: Path
) -> None:
    """Two readers of two exports of one calibration: ours of Hugging Face's layout, the test's of TensorRT-LLM's."""
    engine, model, _ = exported
    exact = reference_logits(model, tokens)
    build_for(engine.parent / "hf", engine.parent / "ranks", **settings(text, quantization="nvfp4"))
    by_ranks = checkpoint_logits(engine.parent / "ranks" / "checkpoint", tokens)
    apply_nvfp4(model, engine / "model")
    by_export = reference_logits(model, tokens)
    assert relative_errors(by_export, exact).median() > 0.05
    # They differ where TensorRT-LLM's layout gives q, k and v one scale.
    assert relative_errors(by_export, by_ranks).median() < 0.5 * relative_errors(by_export, exact).median()


def test_an_nvfp4_export_says_what_it_is(exported: tuple[Path, Any, EngineManifest]) -> None:
    engine, _, manifest = exported
    said = json.loads((engine / "model" / "hf_quant_config.json").read_text())["quantization"]
    assert said["quant_algo"] == record_of(manifest).quant_algo == "NVFP4"
    assert said["group_size"] == 16
    tensors = load_file(str(engine / "model" / "model.safetensors"))
    weight = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert (weight.dtype, weight.shape) == (torch.uint8, (256, 64))


def test_inputs_are_rounded_to_the_nearest_that_four_bits_say() -> None:
    inputs = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    scale = inputs.abs().max() / (448 * 6)
    found = rounded(inputs, scale)
    for row, kept in zip(inputs.view(-1, 16), found.view(-1, 16), strict=True):
        step = (row.abs().max() / 6 / scale).to(torch.float8_e4m3fn).float() * scale
        grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]) * step
        nearest = (row.abs()[:, None] - grid).abs().min(dim=1).values
        assert torch.allclose((kept.abs() - row.abs()).abs(), nearest, atol=1e-6)
        assert (kept * row >= 0).all()


@pytest.mark.parametrize("quantization", ["fp8", "nvfp4"])
def test_what_quantization_costs_is_recorded(quantization: str, tmp_path: Path) -> None:
    save_random("llama", tmp_path / "hf", **WIDE)
    (tmp_path / "text").write_text(BUNDLED.read_text(encoding="utf-8")[:1600], encoding="utf-8")
    options = {
        "dtype": DType.BFLOAT16,
        "max_seq_len": 256,
        "accuracy_text": tmp_path / "text",
        "max_perplexity_increase": 1.0,
    }
    manifest = build_for(tmp_path / "hf", tmp_path / "engine", "1.3", quantization=quantization, **options)
    accuracy = manifest.accuracy
    assert accuracy is not None
    assert 0 < accuracy.mean_kl < 1
    assert accuracy.reference_perplexity > 100
    assert 0.1 < accuracy.greedy_agreement < 1
    weights = build_for(tmp_path / "hf", tmp_path / "weights", quantization="int8", **options).accuracy
    assert weights is not None
    assert 0 < weights.mean_kl < accuracy.mean_kl
    # Half the text calibrates, and is not measured on.
    assert weights.num_tokens > 1.5 * accuracy.num_tokens
