"""Hugging Face directories: where weights come from, and the ways in which a directory may lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.checkpoints import random_checkpoint, random_model, save_checkpoint
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import CheckpointError
from trierarch.builder.manifest import DType, EngineManifest
from trierarch.builder.safetensors_checkpoint import SafetensorsCheckpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return random_checkpoint("llama", tmp_path / "hf")


def build_engine(model: Path, dtype: DType = DType.FLOAT32) -> tuple[EngineManifest, dict[str, torch.Tensor]]:
    output = model.parent / "engine"
    manifest = build(BuildConfig(model=str(model), output=output, dtype=dtype, overwrite=True))
    return manifest, load_file(output / "weights.safetensors")


def change_tensors(checkpoint: Path, change: Any) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors")


def change_config(checkpoint: Path, **values: Any) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_rows_are_stacked_q_k_v_and_gate_up(checkpoint: Path) -> None:
    source = load_file(checkpoint / "model.safetensors")
    _, weights = build_engine(checkpoint)
    attention = [source[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(weights["layers.1.qkv.weight"], torch.cat(attention))
    mlp = [source[f"model.layers.2.mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(weights["layers.2.gate_up.weight"], torch.cat(mlp))
    assert torch.equal(weights["layers.0.mlp_norm.weight"], source["model.layers.0.post_attention_layernorm.weight"])
    assert torch.equal(weights["lm_head.weight"], source["lm_head.weight"])


def test_biases_follow_the_configuration(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama-bias", tmp_path / "hf")
    source = load_file(checkpoint / "model.safetensors")
    manifest, weights = build_engine(checkpoint)
    assert manifest.architecture.qkv_bias
    assert "lm_head.weight" not in weights
    biases = [source[f"model.layers.0.self_attn.{name}_proj.bias"] for name in "qkv"]
    assert torch.equal(weights["layers.0.qkv.bias"], torch.cat(biases))
    for ours, theirs in (("o", "self_attn.o_proj"), ("down", "mlp.down_proj")):
        assert torch.equal(weights[f"layers.0.{ours}.bias"], source[f"model.layers.0.{theirs}.bias"])


def test_experts_are_stacked_by_number(tmp_path: Path) -> None:
    model = random_model("mixtral")
    save_checkpoint(model, tmp_path / "hf")
    _, weights = build_engine(tmp_path / "hf")
    experts = model.model.layers[1].mlp.experts
    assert torch.equal(weights["layers.1.experts.gate_up.weight"], experts.gate_up_proj)
    assert torch.equal(weights["layers.1.experts.down.weight"], experts.down_proj)
    assert torch.equal(weights["layers.1.router.weight"], model.model.layers[1].mlp.gate.weight)


def test_gemma_norms_are_multipliers_in_float32(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("gemma3", tmp_path / "hf")
    source = load_file(checkpoint / "model.safetensors")
    _, weights = build_engine(checkpoint, DType.BFLOAT16)
    for ours, theirs in (("q_norm", "self_attn.q_norm"), ("post_mlp_norm", "post_feedforward_layernorm")):
        norm = weights[f"layers.0.{ours}.weight"]
        assert norm.dtype == torch.float32
        assert torch.equal(norm, 1 + source[f"model.layers.0.{theirs}.weight"])
    assert weights["layers.0.qkv.weight"].dtype == torch.bfloat16


def test_gemma3_inside_a_multimodal_checkpoint(tmp_path: Path) -> None:
    text = random_checkpoint("gemma3", tmp_path / "text")
    expected, expected_weights = build_engine(text)
    config = json.loads((text / "config.json").read_text())
    tensors = load_file(text / "model.safetensors")
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {}, "eos_token_id": [257]}
    for prefix in ("language_model.model.", "model.language_model."):
        renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
        vision = {"vision_tower.patch.weight": torch.zeros(2), "multi_modal_projector.soft": torch.zeros(2)}
        save_file(renamed | vision, text / "model.safetensors")
        (text / "config.json").write_text(json.dumps(outer | {"text_config": config}))
        manifest, weights = build_engine(text)
        assert manifest.architecture.layers == expected.architecture.layers
        assert all(torch.equal(weights[name], weight) for name, weight in expected_weights.items())


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    model = random_model("qwen2")
    save_checkpoint(model, tmp_path / "whole")
    save_checkpoint(model, tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    build(BuildConfig(model=str(tmp_path / "whole"), output=tmp_path / "a", name="same"))
    build(BuildConfig(model=str(tmp_path / "shards"), output=tmp_path / "b", name="same"))
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("escape", ["../outside.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin"])
def test_an_index_cannot_name_files_elsewhere(escape: str, checkpoint: Path) -> None:
    save_file({"x": torch.zeros(1)}, checkpoint.parent / "outside.safetensors")
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": escape}}))
    with pytest.raises(
        CheckpointError, match=r"model.safetensors.index.json names .*: only safetensors files beside it"
    ):
        SafetensorsCheckpoint(checkpoint)


def test_an_index_without_its_shard_is_named(checkpoint: Path) -> None:
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002.safetensors is missing; download"):
        SafetensorsCheckpoint(checkpoint)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map is missing"):
        SafetensorsCheckpoint(checkpoint)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2**62).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\xff\xfe",
        (75).to_bytes(8, "little") + b'{"x":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,64]}}  ',
    ],
)
def test_a_malicious_header_is_refused(content: bytes, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read .*; download the checkpoint again"):
        SafetensorsCheckpoint(checkpoint)


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(kept: float, checkpoint: Path) -> None:
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        SafetensorsCheckpoint(checkpoint)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickled_weights_are_refused(name: str, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    with pytest.raises(CheckpointError, match=rf"{name} is pickled, and reading it would run its code; take"):
        SafetensorsCheckpoint(checkpoint)


def test_missing_tensors_are_named(checkpoint: Path) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"^the checkpoint lacks model.layers.1.mlp.up_proj.weight; download"):
        build_engine(checkpoint)


def test_extra_tensors_are_named(checkpoint: Path) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.update({"model.layers.0.lora_A": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"has model.layers.0.lora_A, which LlamaForCausalLM does not use"):
        build_engine(checkpoint)


def test_known_leftovers_are_ignored(checkpoint: Path) -> None:
    leftover = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    change_tensors(checkpoint, lambda tensors: tensors.update(leftover))
    assert "layers.0.qkv.weight" in build_engine(checkpoint)[1]


def test_misshapen_tensors_are_named(checkpoint: Path) -> None:
    change_config(checkpoint, intermediate_size=100)
    with pytest.raises(
        CheckpointError, match=r"gate_proj.weight has shape \(96, 64\), but config.json says \(100, 64\)"
    ):
        build_engine(checkpoint)


def test_a_quantised_tensor_is_named(checkpoint: Path) -> None:
    name = "model.embed_tokens.weight"
    change_tensors(checkpoint, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    with pytest.raises(CheckpointError, match=rf"{name} is of type int8, and config.json does not say what"):
        build_engine(checkpoint)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"hf has no config.json"),
        ("config.json", "{", r"config.json cannot be read"),
        ("config.json", "[]", r"config.json is not a JSON object"),
        ("config.json", "[" * 100_000, r"config.json cannot be read"),
        ("tokenizer.json", None, r"hf has no tokenizer.json; download"),
        ("tokenizer.json", "{}", r"tokenizer.json cannot be read"),
        ("model.safetensors", None, r"hf has no model.safetensors and no model.safetensors.index.json"),
    ],
)
def test_missing_and_broken_files_are_named(name: str, content: str | None, message: str, checkpoint: Path) -> None:
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        build_engine(checkpoint)
    assert not (checkpoint.parent / "engine").exists()
