"""Checkpoints of 4 bits as they are published: codes kept to the bit, dequantised, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.checkpoints import random_checkpoint
from support.forward import prompt_logits
from support.fp8_checkpoints import change_config
from support.int4_checkpoints import CONFIGS, Tensors, publish_int4
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.errors import CheckpointError, ConfigError
from trierarch.builder.manifest import DType, EngineManifest, Quantization, WeightType
from trierarch.builder.safetensors_checkpoint import SafetensorsCheckpoint
from trierarch.orchestrator.engine_summary import summary_rows
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix
from trierarch.python_backend.executors.torch.weights import Weights, load_weights

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Inputs of down are one group and a half."""
    return random_checkpoint("llama", tmp_path / "hf", num_hidden_layers=2)


def build_engine(model: Path, output: Path, quantization: str | None, **options: Any) -> tuple[EngineManifest, Weights]:
    options = {"dtype": DType.FLOAT32, "compile": False, "accuracy_check": False} | options
    config = BuildConfig.model_validate({"model": str(model), "output": output, "quantization": quantization} | options)
    manifest = build(config)
    return manifest, load_weights(output, manifest, CPU)


def layer_matrices(exact: Tensors, layer: int) -> dict[str, torch.Tensor]:
    def stacked(*names: str) -> torch.Tensor:
        return torch.cat([exact[f"model.layers.{layer}.{name}_proj.weight"] for name in names])

    return {
        f"layers.{layer}.qkv.weight": stacked("self_attn.q", "self_attn.k", "self_attn.v"),
        f"layers.{layer}.o.weight": stacked("self_attn.o"),
        f"layers.{layer}.gate_up.weight": stacked("mlp.gate", "mlp.up"),
        f"layers.{layer}.down.weight": stacked("mlp.down"),
    }


@pytest.mark.parametrize("kind", CONFIGS)
def test_codes_are_kept_to_the_bit(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    """What zeros times scales lose in float16 is a hundredth of a scale at most; symmetric ones lose nothing."""
    exact = publish_int4(checkpoint, kind)
    manifest, weights = build_engine(checkpoint, tmp_path / "engine", "source")
    assert manifest.quantization == Quantization(weights=WeightType.SOURCE, num_int4=8, num_unquantized=1)
    for layer in range(2):
        for name, expected in layer_matrices(exact, layer).items():
            matrix = weights[name]
            assert isinstance(matrix, QuantizedMatrix)
            assert matrix.bits == 4
            off = (matrix.dequantize(torch.float32) - expected).abs()
            least = matrix.scales.float().repeat_interleave(32, 1)
            assert (off <= least / 100).all()
            assert (off.max() == 0) == (kind in ("packed", "gptq_v2"))
    assert dict(summary_rows(manifest))["engine"].endswith("(INT4, groups of 64)")


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_not_kept_is_what_the_codes_stand_for(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    exact = publish_int4(checkpoint, kind)
    manifest, weights = build_engine(checkpoint, tmp_path / "engine", None)
    assert (manifest.quantization, manifest.source_quantization) == (None, "INT4, groups of 64")
    for name, expected in layer_matrices(exact, 1).items():
        weight = weights[name]
        assert isinstance(weight, torch.Tensor)
        assert weight.equal(expected)


def test_int4_keeps_them_and_rounds_the_rest(checkpoint: Path, tmp_path: Path) -> None:
    publish_int4(checkpoint, "awq")
    manifest, weights = build_engine(checkpoint, tmp_path / "int4", "int4")
    assert manifest.quantization == Quantization(weights=WeightType.INT4, num_int8=1, num_int4=8)
    _, source = build_engine(checkpoint, tmp_path / "source", "source")
    ours, theirs = weights["layers.1.down.weight"], source["layers.1.down.weight"]
    assert isinstance(ours, QuantizedMatrix)
    assert isinstance(theirs, QuantizedMatrix)
    assert ours.codes.equal(theirs.codes)


@pytest.mark.parametrize("value", [0, 1])
def test_biases_that_the_model_has_not_are_left_out_if_they_are_zeros(
    value: int, checkpoint: Path, tmp_path: Path
) -> None:
    publish_int4(checkpoint, "gptq")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.bias"] = torch.full((96,), value).half()
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    if value:
        with pytest.raises(CheckpointError, match=r"the checkpoint has model.layers.1.mlp.up_proj.bias, which Llama"):
            build_engine(checkpoint, tmp_path / "engine", "source")
    else:
        assert build_engine(checkpoint, tmp_path / "engine", "source")[0].quantization is not None


def test_the_kernels_run_them(checkpoint: Path, tmp_path: Path) -> None:
    publish_int4(checkpoint, "gptq")
    manifest, _ = build_engine(checkpoint, tmp_path / "engine", "source", compile=True)
    assert manifest.kernels is not None
    tokens = list(range(20))
    eager = prompt_logits(tmp_path / "engine", tokens, [20])
    compiled = prompt_logits(tmp_path / "engine", tokens, [20], is_compiled=True)
    assert ((compiled - eager).norm(dim=1) / eager.norm(dim=1)).max() < 0.05


def test_experts_and_groups_of_whole_rows(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("qwen3-moe", tmp_path / "hf", num_hidden_layers=1, mlp_only_layers=[])
    exact = publish_int4(checkpoint, "awq")
    _, weights = build_engine(checkpoint, tmp_path / "engine", "source")
    matrix = weights["layers.0.experts.down.weight"]
    assert isinstance(matrix, QuantizedMatrix)
    stacked = torch.stack([exact[f"model.layers.0.mlp.experts.{one}.down_proj.weight"] for one in range(8)])
    torch.testing.assert_close(matrix.dequantize(torch.float32), stacked, atol=1e-3, rtol=0)


def test_a_scale_a_row_is_a_group_of_the_whole_row(checkpoint: Path) -> None:
    """Of 64 inputs and groups of 64 both say the same."""
    exact = publish_int4(checkpoint, "packed")
    weights = CONFIGS["packed"]["config_groups"]["group_0"]["weights"] | {"strategy": "channel", "group_size": None}
    tensors = load_file(checkpoint / "model.safetensors")
    for name in [one for one in tensors if "down_proj.weight_scale" in one]:
        tensors[name] = tensors[name][:, :1].contiguous()
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    change_config(
        checkpoint, quantization_config=CONFIGS["packed"] | {"config_groups": {"group_0": {"weights": weights}}}
    )
    opened = SafetensorsCheckpoint(checkpoint)
    assert opened.quantization == "INT4, a scale a row"
    name = "model.layers.1.self_attn.o_proj.weight"
    assert opened.load(name).equal(exact[name])
    assert opened.load("model.layers.1.mlp.down_proj.weight").shape == (64, 96)


def group(**changes: Any) -> dict[str, Any]:
    weights = CONFIGS["packed"]["config_groups"]["group_0"]["weights"] | changes
    return {**CONFIGS["packed"], "config_groups": {"group_0": {"weights": weights}}}


REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "three bits": (
        {**CONFIGS["gptq"], "bits": 3},
        "quantization_config.bits is 3: this builder reads 4; take the orig",
    ),
    "eight bits": (group(num_bits=8), r"config_groups.group_0.weights.num_bits is 8: this builder reads 4"),
    "small groups": (
        {**CONFIGS["awq"], "group_size": 16},
        "group_size is 16: this builder reads -1 and multiples of 32",
    ),
    "no groups": ({**CONFIGS["awq"], "group_size": 0}, "group_size is 0"),
    "marlin": ({**CONFIGS["gptq"], "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin': .* reads gptq and"),
    "gemv": ({**CONFIGS["awq"], "version": "gemv"}, "version is 'gemv': this builder reads gemm"),
    "reordered": (group(actorder="group"), "actorder is 'group': this builder reads groups that lie side by side"),
    "floats": (group(type="float"), "weights.type is 'float'"),
    "by tensor": (group(strategy="tensor"), "weights.strategy is 'tensor': this builder reads group and channel"),
    "no bits": ({"quant_method": "gptq", "group_size": 128}, "quantization_config.bits: Field required"),
}


@pytest.mark.parametrize("config, message", REFUSED.values(), ids=REFUSED)
def test_others_are_refused_by_name(config: Mapping[str, Any], message: str, checkpoint: Path) -> None:
    change_config(checkpoint, quantization_config=config)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsCheckpoint(checkpoint)


STEM = "model.layers.0.self_attn.q_proj"
DAMAGE: Mapping[str, tuple[Callable[[Tensors], object], str]] = {
    "no scales": (lambda one: one.pop(f"{STEM}.scales"), "qweight is INT4, and there is no .*q_proj.scales beside it"),
    "no zeros": (lambda one: one.pop(f"{STEM}.qzeros"), "qweight is INT4, and there is no .*q_proj.qzeros beside it"),
    "another group": (
        lambda one: one.update({f"{STEM}.scales": torch.ones(2, 64).half()}),
        r"scales has shape \(2, 64\), and .*qweight of \(8, 64\) wants \(1, 64\) in INT4, groups of 64",
    ),
    "bytes": (
        lambda one: one.update({f"{STEM}.qweight": torch.zeros(8, 64, dtype=torch.int8)}),
        r"qweight is I8 \(8, 64\) in place of a matrix of I32",
    ),
    "zeros of bytes": (
        lambda one: one.update({f"{STEM}.qzeros": torch.zeros(1, 8, dtype=torch.int8)}),
        r"q_proj.qzeros is of type I8 in place of I32",
    ),
    "scales of integers": (
        lambda one: one.update({f"{STEM}.scales": torch.ones(1, 64, dtype=torch.int32)}),
        r"q_proj.scales is of type I32: scales are read as F32, BF16, F16; download",
    ),
    "not finite": (lambda one: one[f"{STEM}.scales"].fill_(torch.inf), "q_proj.weight has a scale that is not finite"),
    "reordered": (
        lambda one: one["model.layers.0.mlp.down_proj.g_idx"].copy_(torch.arange(96) % 2),
        r"down_proj.g_idx has inputs in another order \(desc_act\): this builder reads .*; take a checkpoint without",
    ),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("asked", ["source", None])
def test_damage_is_named_and_leaves_nothing(
    damage: Callable[[Tensors], object], message: str, asked: str | None, checkpoint: Path, tmp_path: Path
) -> None:
    publish_int4(checkpoint, "gptq")
    tensors = load_file(checkpoint / "model.safetensors")
    damage(tensors)
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        build_engine(checkpoint, tmp_path / "engine", asked)
    assert not (tmp_path / "engine").exists()


def test_a_scale_that_float16_does_not_hold_is_named(checkpoint: Path, tmp_path: Path) -> None:
    publish_int4(checkpoint, "packed")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[f"{STEM}.weight_scale"][3] = 1e5
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"q_proj.weight has a scale that is not finite in float16"):
        build_engine(checkpoint, tmp_path / "engine", "source")


def test_inputs_that_do_not_come_in_groups_are_named(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "hf", num_hidden_layers=1, intermediate_size=48)
    publish_int4(checkpoint, "awq")
    message = r"quantization is 'source': model.layers.0.mlp.down_proj has 48 inputs, not a multiple of 32; leave"
    with pytest.raises(ConfigError, match=message):
        build_engine(checkpoint, tmp_path / "engine", "source")
    assert build_engine(checkpoint, tmp_path / "plain", None)[0].quantization is None
