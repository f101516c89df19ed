"""Checkpoints that are FP8 as they are published: kept to the bit, dequantised, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.checkpoints import random_checkpoint
from support.fp8_checkpoints import (
    MODELOPT_CONFIG,
    Block,
    Tensors,
    by_blocks,
    by_rows,
    by_tensor,
    change_config,
    compressed_config,
    elements,
    fp8_config,
    publish,
)
from trierarch.builder import machine
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.decoder import read_decoder
from trierarch.builder.engine_matrices import EngineMatrices
from trierarch.builder.errors import CheckpointError, ConfigError
from trierarch.builder.manifest import WEIGHTS_NAME, DType, EngineManifest, Quantization, Tokens, WeightType
from trierarch.builder.model import read_model
from trierarch.builder.progress import NoProgress
from trierarch.builder.safetensors_checkpoint import SafetensorsCheckpoint
from trierarch.builder.verify import verify
from trierarch.orchestrator.engine_summary import summary_rows
from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.matrix import Matrix
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix
from trierarch.python_backend.executors.torch.weights import Weights, load_weights

CPU = torch.device("cpu")
KV_SCALES = {
    f"model.layers.{layer}.self_attn.{name}": torch.tensor(0.5)
    for layer in range(3)
    for name in ("k_scale", "k_proj.k_scale", "v_proj.output_scale")
}
BLOCK = (48, 40)
"""Divides none of the sizes; 64 rows of q are where k begins, so that blocks of 16 rows are the largest that fit."""


@dataclass(frozen=True)
class Case:
    """One way to publish."""

    quantise: Callable[[str, torch.Tensor], Tensors]
    config: Mapping[str, Any]
    block: Block | None = None


def blocks_as_compressed(stem: str, weight: torch.Tensor) -> Tensors:
    return {name.removesuffix("_inv"): one for name, one in by_blocks(BLOCK)(stem, weight).items()}


CASES = {
    "fp8 in blocks": Case(by_blocks(BLOCK), fp8_config(BLOCK), BLOCK),
    "fp8 by tensor": Case(by_tensor, fp8_config(None) | {"activation_scheme": "static"}),
    "compressed-tensors by tensor": Case(by_tensor, compressed_config("tensor")),
    "compressed-tensors by channel": Case(by_rows, compressed_config("channel")),
    "compressed-tensors in blocks": Case(
        blocks_as_compressed, compressed_config("block", block_structure="48x40"), BLOCK
    ),
    "modelopt": Case(by_tensor, MODELOPT_CONFIG),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return random_checkpoint("llama", tmp_path / "hf", num_hidden_layers=2)


def build_engine(model: Path, output: Path, quantization: str | None, **options: Any) -> tuple[EngineManifest, Weights]:
    options = {"dtype": DType.FLOAT32, "compile": False, "accuracy_check": False} | options
    config = BuildConfig.model_validate({"model": str(model), "output": output, "quantization": quantization} | options)
    manifest = build(config)
    assert verify(output, digests=True) == manifest
    return manifest, load_weights(output, manifest, CPU)


def plain(weight: Matrix) -> torch.Tensor:
    return weight if isinstance(weight, torch.Tensor) else weight.dequantize(torch.float32)


def stacked(tensors: Tensors, block: Block | None, layer: int, *names: str) -> torch.Tensor:
    """What rows of a layer's matrix stand for, by hand."""
    return torch.cat([elements(tensors, f"model.layers.{layer}.{name}.weight", block) for name in names])


def check_layer(weights: Weights, tensors: Tensors, block: Block | None, layer: int) -> None:
    attention = (f"self_attn.{name}_proj" for name in "qkv")
    assert plain(weights[f"layers.{layer}.qkv.weight"]).equal(stacked(tensors, block, layer, *attention))
    assert plain(weights[f"layers.{layer}.o.weight"]).equal(stacked(tensors, block, layer, "self_attn.o_proj"))
    gate_up = stacked(tensors, block, layer, "mlp.gate_proj", "mlp.up_proj")
    assert plain(weights[f"layers.{layer}.gate_up.weight"]).equal(gate_up)
    assert plain(weights[f"layers.{layer}.down.weight"]).equal(stacked(tensors, block, layer, "mlp.down_proj"))


@pytest.mark.parametrize("asked", ["source", "fp8"])
@pytest.mark.parametrize("name", CASES)
def test_codes_and_scales_are_kept(name: str, asked: str, checkpoint: Path, tmp_path: Path) -> None:
    """Those of q, k and v side by side with a scale each, and of blocks that reach beyond the end of a matrix."""
    case = CASES[name]
    tensors = publish(checkpoint, case.quantise, case.config, more=KV_SCALES)
    manifest, weights = build_engine(checkpoint, tmp_path / "engine", asked)
    block = None if case.block is None else (16, 40)
    assert manifest.quantization == Quantization(
        weights=WeightType(asked), num_fp8=8, num_unquantized=1, fp8_block=block
    )
    stored = load_file(tmp_path / "engine" / WEIGHTS_NAME)
    for layer in range(2):
        check_layer(weights, tensors, case.block, layer)
        codes = stored[f"layers.{layer}.down.codes"].view(torch.uint8)
        assert codes.equal(tensors[f"model.layers.{layer}.mlp.down_proj.weight"].view(torch.uint8))
    assert plain(weights["lm_head.weight"]).equal(tensors["lm_head.weight"])
    down = weights["layers.0.down.weight"]
    assert isinstance(down, Fp8Matrix)
    assert down.scales.shape == ((64,) if block is None else (4, 3))


@pytest.mark.parametrize("name", ["fp8 in blocks", "modelopt"])
def test_experts_are_stacked_each_with_its_scales(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    checkpoint = random_checkpoint("qwen3-moe", tmp_path / "hf", num_hidden_layers=2, mlp_only_layers=[1])
    tensors = publish(checkpoint, case.quantise, case.config)
    manifest, weights = build_engine(checkpoint, tmp_path / "engine", "source")
    experts = range(8)
    for ours, names in (("gate_up", ("gate_proj", "up_proj")), ("down", ("down_proj",))):
        matrix = weights[f"layers.0.experts.{ours}.weight"]
        assert isinstance(matrix, Fp8Matrix)
        each = [stacked(tensors, case.block, 0, *(f"mlp.experts.{one}.{name}" for name in names)) for one in experts]
        assert plain(matrix).equal(torch.stack(each))
        assert [plain(one).equal(expected) for one, expected in zip(matrix.unbind(), each, strict=True)] == [True] * 8
    check_layer(weights, tensors, case.block, 1)
    assert isinstance(weights["layers.0.router.weight"], torch.Tensor)
    assert manifest.quantization is not None
    assert manifest.quantization.fp8_block == (None if case.block is None else (16, 40))


def test_matrices_that_are_one_already(tmp_path: Path) -> None:
    """Phi-3's qkv and gate_up: blocks go on across q, k and v, as they are published."""
    checkpoint = random_checkpoint("phi3", tmp_path / "hf", num_hidden_layers=1)
    tensors = publish(checkpoint, by_blocks(BLOCK), fp8_config(BLOCK))
    manifest, weights = build_engine(checkpoint, tmp_path / "engine", "source")
    assert manifest.quantization is not None
    assert manifest.quantization.fp8_block == BLOCK
    assert plain(weights["layers.0.qkv.weight"]).equal(stacked(tensors, BLOCK, 0, "self_attn.qkv_proj"))
    assert plain(weights["layers.0.gate_up.weight"]).equal(stacked(tensors, BLOCK, 0, "mlp.gate_up_proj"))


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_matrix_of_the_logits_is_kept_too(is_tied: bool, tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "hf", num_hidden_layers=1, tie_word_embeddings=is_tied)
    left_out = () if is_tied else ("embed_tokens",)
    tensors = publish(checkpoint, by_blocks(BLOCK), fp8_config(BLOCK), left_out=left_out)
    _, weights = build_engine(checkpoint, tmp_path / "engine", "fp8")
    ours, theirs = ("embed.weight", "model.embed_tokens.weight") if is_tied else ("lm_head.weight", "lm_head.weight")
    matrix, exact = weights[ours], elements(tensors, theirs, BLOCK)
    assert isinstance(matrix, Fp8Matrix)
    assert plain(matrix).equal(exact)
    ids = torch.tensor([319, 0, 47, 48, 200])
    assert matrix.rows(ids, torch.float32).equal(exact[ids])


@pytest.mark.parametrize("vocab_size", [300, 352])
def test_another_vocabulary_cuts_blocks_or_adds_empty_ones(vocab_size: int, tmp_path: Path) -> None:
    """As a draft's, which has the model's."""
    checkpoint = random_checkpoint("llama", tmp_path / "hf", num_hidden_layers=1)
    exact = elements(publish(checkpoint, by_blocks(BLOCK), fp8_config(BLOCK), left_out=()), "lm_head.weight", BLOCK)
    opened = SafetensorsCheckpoint(checkpoint)
    assert "quantization_config" not in opened.config
    decoder = read_decoder(opened.config, None)
    tokens = Tokens(bos=None, eos=(257,), pad=0, add_bos=False)
    model = read_model(opened, decoder, tokens, DType.FLOAT32, WeightType.SOURCE, vocab_size=vocab_size)
    model.weights.write(tmp_path / WEIGHTS_NAME, NoProgress())
    stored = load_file(tmp_path / WEIGHTS_NAME)
    matrix = Fp8Matrix(stored["lm_head.codes"], stored["lm_head.scales"], (16, 40))
    expected = torch.zeros(vocab_size, 64)
    expected[:320] = exact[:vocab_size]
    assert plain(matrix).equal(expected)


def test_what_is_left_out_stays_unless_fp8_is_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    tensors = publish(
        checkpoint,
        by_blocks(BLOCK),
        fp8_config(BLOCK),
        left_out=("lm_head", "embed_tokens", "layers.1.", "0.mlp.up_proj"),
    )
    manifest, weights = build_engine(checkpoint, tmp_path / "source", "source")
    kept = {name for name, one in weights.items() if isinstance(one, Fp8Matrix)}
    assert kept == {f"layers.0.{name}.weight" for name in ("qkv", "o", "down")}  # gate_up is half and half
    check_layer(weights, tensors, BLOCK, 0)
    check_layer(weights, tensors, BLOCK, 1)
    rows = dict(summary_rows(manifest))
    assert rows["weights"] == "as in the checkpoint, a scale for blocks of 16 × 40 (9 matrices: 3 fp8, 6 unquantised)"
    assert rows["engine"].endswith("(FP8, 48x40 blocks)")
    _, weights = build_engine(checkpoint, tmp_path / "fp8", "fp8")
    o, gate_up = weights["layers.0.o.weight"], weights["layers.0.gate_up.weight"]
    assert isinstance(o, Fp8Matrix)
    assert isinstance(gate_up, Fp8Matrix)
    assert (o.block, gate_up.block) == ((16, 40), None)
    exact = stacked(tensors, BLOCK, 0, "mlp.gate_proj", "mlp.up_proj")
    assert 0 < (plain(gate_up) - exact).norm() < 0.04 * exact.norm()


def test_what_is_not_kept_is_dequantised(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a GPU that multiplies it: so the engine has CPU kernels; int8 is made of what the codes stand for."""
    tensors = publish(checkpoint, by_blocks(BLOCK), fp8_config(BLOCK))
    manifest, weights = build_engine(checkpoint, tmp_path / "plain", None)
    assert "FP8 weights are dequantised, since no GPU here multiplies them; keep them with --quantization source" in (
        caplog.text
    )
    assert manifest.quantization is None
    assert manifest.source_quantization == "FP8, 48x40 blocks"
    assert all(isinstance(one, torch.Tensor) for one in weights.values())
    check_layer(weights, tensors, BLOCK, 1)
    manifest, weights = build_engine(checkpoint, tmp_path / "int8", "int8")
    exact, matrix = stacked(tensors, BLOCK, 0, "self_attn.o_proj"), weights["layers.0.o.weight"]
    assert isinstance(matrix, QuantizedMatrix)
    assert (plain(matrix) - exact).norm() < 0.01 * exact.norm()


def test_a_gpu_that_multiplies_it_keeps_it(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(checkpoint, by_tensor, MODELOPT_CONFIG)
    monkeypatch.setattr(machine, "cuda_architectures", lambda: ("sm_90",))
    assert build_engine(checkpoint, tmp_path / "engine", None)[0].quantization is not None
    monkeypatch.setattr(machine, "cuda_architectures", lambda: ("sm_80",))
    assert build_engine(checkpoint, tmp_path / "old", None)[0].quantization is None


def test_adapters_see_what_the_blocks_stand_for(checkpoint: Path, tmp_path: Path) -> None:
    tensors = publish(checkpoint, by_blocks(BLOCK), fp8_config(BLOCK))
    manifest, _ = build_engine(checkpoint, tmp_path / "engine", "source")
    matrices = EngineMatrices(tmp_path / "engine", manifest)
    for piece, name in (("v", "self_attn.v_proj"), ("up", "mlp.up_proj"), ("down", "mlp.down_proj")):
        (rows, numbers), *more = matrices.chunks(f"layers.1.{piece}", piece)
        assert not more
        assert torch.from_numpy(numbers).equal(stacked(tensors, BLOCK, 1, name)[rows])


def test_scales_of_each_rank_are_those_of_its_share(checkpoint: Path, tmp_path: Path) -> None:
    """`plan_parallel` asks for groups of 32 inputs where there are some, and FP8 has none."""
    publish(checkpoint, by_blocks(BLOCK), fp8_config(BLOCK))
    manifest, _ = build_engine(checkpoint, tmp_path / "engine", "source", tensor_parallel_size=2)
    assert manifest.parallel is not None  # 48 inputs of down for each


REFUSED = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method is 'bitsandbytes'"),
    "nothing": (
        {},
        r"quant_method is None: this builder reads fp8, .*; take the original checkpoint, or its FP8 or GGUF",
    ),
    "a list": ([], "quantization_config is not an object"),
    "another fp8": (fp8_config(None) | {"fmt": "e5m2"}, "quantization_config.fmt is 'e5m2': this builder reads e4m3;"),
    "one number a block": (fp8_config(None) | {"weight_block_size": [128]}, "quantization_config.weight_block_size"),
    "no rows": (fp8_config((0, 128)), "weight_block_size.0 is 0"),
    "nvfp4": (
        MODELOPT_CONFIG | {"quant_algo": "NVFP4"},
        "quant_algo is 'NVFP4': this builder reads FP8, FP8_PER_CHANNEL",
    ),
    "mxfp4": (
        compressed_config("group") | {"format": "mxfp4-pack-quantized"},
        r"quantization_config.format is 'mxfp4-pack-quantized': this builder reads float-quantized and pack-quantized; take",
    ),
    "integers": (compressed_config("channel", type="int"), "group_0.weights.type is 'int of 8 bits'"),
    "groups": (compressed_config("group"), "group_0.weights.strategy is 'group'"),
    "blocks of nothing": (compressed_config("block"), "block_structure is None"),
    "offsets": (compressed_config("tensor", symmetric=False), "group_0.weights.symmetric is False"),
    "rotated": (compressed_config("tensor") | {"transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
    "sparse": (
        compressed_config("tensor") | {"sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparsity_config.format is 'sparse-24-bitmask'",
    ),
    "no groups": ({"quant_method": "compressed-tensors"}, "config_groups: Field required"),
}


@pytest.mark.parametrize("config, message", REFUSED.values(), ids=REFUSED)
def test_other_formats_are_refused_by_name(config: Any, message: str, checkpoint: Path) -> None:
    change_config(checkpoint, quantization_config=config)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsCheckpoint(checkpoint)


def test_blocks_of_two_sizes_are_refused(checkpoint: Path) -> None:
    first, second = (compressed_config("block", block_structure=list(one)) for one in ((128, 128), (1, 128)))
    groups = {"a": first["config_groups"]["group_0"], "b": second["config_groups"]["group_0"]}
    change_config(checkpoint, quantization_config=first | {"config_groups": groups})
    with pytest.raises(CheckpointError, match=r"config_groups is .*: this builder reads one format"):
        SafetensorsCheckpoint(checkpoint)


Q = "model.layers.0.self_attn.q_proj.weight"
NAN = torch.tensor(float("nan"))
DAMAGE: Mapping[str, tuple[Callable[[Tensors], object], str]] = {
    "no scale": (
        lambda one: one.pop(f"{Q}_scale_inv"),
        r"q_proj.weight is FP8, and there is no .*q_proj.weight_scale_inv or",
    ),
    "too few": (
        lambda one: one.update({f"{Q}_scale_inv": torch.ones(1, 2)}),
        r"scale_inv has shape \(1, 2\), and .*q_proj.weight of \(64, 64\) wants \(2, 2\), one a block of \(48, 40\)",
    ),
    "of another type": (
        lambda one: one.update({f"{Q}_scale_inv": torch.ones(2, 2, dtype=torch.int32)}),
        r"scale_inv is of type I32: scales are read as F32",
    ),
    "not finite": (lambda one: one[f"{Q}_scale_inv"].fill_(NAN), "q_proj.weight has a scale that is not finite"),
    "codes": (lambda one: one[Q].view(torch.uint8)[3:5, 7].fill_(255), "q_proj.weight holds NaN; download"),
    "nobody's": (lambda one: one.update({"x.weight_scale": torch.ones(1)}), "the checkpoint has x.weight_scale, which"),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("asked", ["source", None])
def test_damage_is_named_and_leaves_nothing(
    damage: Callable[[Tensors], object], message: str, asked: str | None, checkpoint: Path, tmp_path: Path
) -> None:
    tensors = publish(checkpoint, by_blocks(BLOCK), fp8_config(BLOCK))
    damage(tensors)
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        build_engine(checkpoint, tmp_path / "engine", asked)
    assert not (tmp_path / "engine").exists()


def test_fp8_that_nobody_explains_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    publish(checkpoint, by_tensor, {})
    raw = load_file(checkpoint / "model.safetensors")
    save_file({name: one for name, one in raw.items() if "scale" not in name}, checkpoint / "model.safetensors")
    change_config(checkpoint, quantization_config=None)
    with pytest.raises(
        CheckpointError, match=r"is of type float8_e4m3fn, and config.json does not say what it stands for"
    ):
        build_engine(checkpoint, tmp_path / "engine", None)


def test_a_checkpoint_without_fp8_has_nothing_to_keep(checkpoint: Path, tmp_path: Path) -> None:
    """As modelopt says it of one whose keys and values alone are quantised."""
    publish(checkpoint, by_tensor, MODELOPT_CONFIG | {"quant_algo": None}, left_out=("weight",), more=KV_SCALES)
    manifest, _ = build_engine(checkpoint, tmp_path / "engine", None)
    assert (manifest.quantization, manifest.source_quantization) == (None, None)
    with pytest.raises(
        ConfigError, match=r"quantization is 'source': the checkpoint has no matrix in Q8_0, .* FP8, GPTQ or AWQ; ask"
    ):
        build_engine(checkpoint, tmp_path / "other", "source")
