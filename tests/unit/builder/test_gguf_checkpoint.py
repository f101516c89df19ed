"""GGUF files against the Hugging Face checkpoints that they were converted from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support.checkpoints import random_checkpoint
from support.gguf_files import write_gguf
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import CheckpointError
from trierarch.builder.gguf_checkpoint import TENSOR_TYPES, GgufCheckpoint
from trierarch.builder.manifest import DType, EngineManifest

# What GGUF cannot say is overridden with what llama.cpp fixes in its stead.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {},
    "llama-yarn": {},
    "mixtral": {},
    "smollm3": {},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {},
    "qwen3-moe": {"mlp_only_layers": []},
    "phi3": {},
    "phi3-longrope": {},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3": {"query_pre_attn_scalar": 32, "layer_types": None, "num_hidden_layers": 7},
}
QUANTIZABLE = [name for name in TENSOR_TYPES if not name.endswith("_K")]


def build_engine(model: Path, output: Path) -> tuple[EngineManifest, dict[str, torch.Tensor]]:
    manifest = build(BuildConfig(model=str(model), output=output, dtype=DType.FLOAT32))
    return manifest, load_file(output / "weights.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_and_hugging_face_give_the_same_engine(family: str, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(family, tmp_path / "hf", **FAMILIES[family])
    expected, expected_weights = build_engine(checkpoint, tmp_path / "from-hf")
    actual, weights = build_engine(write_gguf(checkpoint, tmp_path / "model.gguf"), tmp_path / "from-gguf")

    for one, other in zip(actual.architecture.ropes, expected.architecture.ropes, strict=True):
        assert one.rotary_dim == other.rotary_dim
        assert one.attention_factor == pytest.approx(other.attention_factor, rel=1e-6)
    same = {"ropes": expected.architecture.ropes, "norm_eps": expected.architecture.norm_eps}
    assert actual.architecture.model_copy(update=same) == expected.architecture
    assert actual.architecture.norm_eps == pytest.approx(expected.architecture.norm_eps, rel=1e-6)
    assert actual.tokens == expected.tokens
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(
            weight, expected_weights[name], rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("tensor_type", QUANTIZABLE)
def test_each_type_comes_back_as_the_package_dequantises_it(tensor_type: str, tmp_path: Path) -> None:
    checkpoint = random_checkpoint("qwen3", tmp_path / "hf", intermediate_size=64)
    path = write_gguf(checkpoint, tmp_path / "model.gguf", tensor_type)
    original = load_file(checkpoint / "model.safetensors")["model.layers.1.mlp.up_proj.weight"].numpy()
    quant = gguf.GGMLQuantizationType[tensor_type]
    manifest, weights = build_engine(path, tmp_path / "engine")

    assert manifest.source_quantization == tensor_type
    up = weights["layers.1.gate_up.weight"][64:].numpy()
    np.testing.assert_array_equal(up, gguf.quants.dequantize(gguf.quants.quantize(original, quant), quant))
    assert np.abs(up - original).max() < 0.15


@pytest.mark.parametrize("tensor_type", sorted(set(TENSOR_TYPES) - set(QUANTIZABLE)))
def test_each_k_type_comes_back_as_the_package_dequantises_it(tensor_type: str, tmp_path: Path) -> None:
    """The package cannot quantise these: the blocks are random bytes with sane scales."""
    quant = gguf.GGMLQuantizationType[tensor_type]
    path, stored = write_k_quantized(tmp_path, quant)
    manifest, weights = build_engine(path, tmp_path / "engine")

    assert manifest.source_quantization == tensor_type
    expected = gguf.quants.dequantize(stored, quant)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(weights["layers.0.down.weight"].numpy(), expected)


def write_k_quantized(directory: Path, quant: gguf.GGMLQuantizationType) -> tuple[Path, Any]:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "num_hidden_layers": 1}
    checkpoint = random_checkpoint("qwen3", directory / "hf", **sizes)
    plain = gguf.GGUFReader(write_gguf(checkpoint, directory / "plain.gguf"))
    block_size, type_size = gguf.GGML_QUANT_SIZES[quant]
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(directory / "k.gguf", "qwen3")
    for key, field in plain.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            main = field.types[0]
            sub = field.types[-1] if main is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), main, sub_type=sub)
    stored = None
    for tensor in plain.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        rows, columns = tensor.data.shape
        blocks = generator.integers(0, 256, (rows, columns // block_size, type_size), dtype=np.uint8)
        halves = blocks.view(np.float16)  # scales lie at one end; small positive numbers keep them finite everywhere
        halves[:, :, :2] = np.float16(0.01)
        halves[:, :, -2:] = np.float16(0.01)
        raw = blocks.reshape(rows, -1)
        if tensor.name == "blk.0.ffn_down.weight":
            stored = raw
        writer.add_tensor(tensor.name, raw, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return directory / "k.gguf", stored


def test_an_unknown_tensor_type_is_named(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("qwen3", tmp_path / "hf", hidden_size=256, intermediate_size=256)
    path = write_gguf(checkpoint, tmp_path / "model.gguf", "TQ2_0")
    with pytest.raises(CheckpointError, match=r"is of type TQ2_0: this builder reads F32, .*; take another"):
        GgufCheckpoint(path)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"general.architecture is 'mamba': this builder reads llama"):
        GgufCheckpoint(tmp_path / "model.gguf")


@pytest.mark.parametrize("kept", [0.01, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(kept: float, tmp_path: Path) -> None:
    whole = write_gguf(random_checkpoint("llama", tmp_path / "hf"), tmp_path / "model.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(CheckpointError, match=r"cut.gguf is not a readable GGUF file .* download it again"):
        GgufCheckpoint(tmp_path / "cut.gguf")


@pytest.mark.parametrize("content", [b"", b"GG", b"not a gguf at all" * 10, b"GGUF\x03\0\0\0" + b"\xff" * 64])
def test_what_is_no_gguf_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable GGUF file"):
        GgufCheckpoint(tmp_path / "model.gguf")


def test_a_tensor_of_no_use_is_named(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "hf")
    path = write_gguf(checkpoint, tmp_path / "m.gguf", extra_tensors={"blk.0.extra.weight": np.zeros(4, np.float32)})
    with pytest.raises(CheckpointError, match=r"has blk.0.extra.weight, which LlamaForCausalLM does not use"):
        build_engine(path, tmp_path / "engine")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "hf")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    path = write_gguf(checkpoint, tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=r"lacks model.layers.3.* and 6 more tensors; download it again"):
        build_engine(path, tmp_path / "engine")
