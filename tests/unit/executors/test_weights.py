from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_weights
from trierarch.builder.adapter import to_floats
from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import (
    WEIGHTS_NAME,
    DType,
    EngineManifest,
    Layer,
    Moe,
    Quantization,
    WeightType,
)
from trierarch.python_backend.executors.cpu import weights as cpu_weights
from trierarch.python_backend.executors.cpu.abi import Format
from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix
from trierarch.python_backend.executors.torch.weights import load_weights
from trierarch.python_backend.executors.weight_table import weight_shapes

CPU = torch.device("cpu")
Weights = dict[str, torch.Tensor]
Load = Callable[[Path, EngineManifest], Mapping[str, list[torch.Tensor]]]


def load_tensors(engine: Path, manifest: EngineManifest) -> dict[str, list[torch.Tensor]]:
    """What torch's loader gives, each weight as the tensors that it is made of."""
    return {
        name: [tensor for tensor in (weight.codes, weight.scales, weight.offsets) if tensor is not None]
        if isinstance(weight, QuantizedMatrix)
        else [weight]
        for name, weight in load_weights(engine, manifest, CPU).items()
    }


def load_arrays(engine: Path, manifest: EngineManifest) -> dict[str, list[torch.Tensor]]:
    """What numpy's loader gives, likewise."""
    return {
        name: [_tensor(array) for array in weight.arrays]
        for name, weight in cpu_weights.load_weights(engine, manifest).items()
    }


def _tensor(array: cpu_weights.Array) -> torch.Tensor:
    tensor = torch.from_numpy(array.copy())
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


@pytest.fixture(params=[load_tensors, load_arrays])
def load(request: pytest.FixtureRequest) -> Load:
    """Every test here holds both loaders."""
    loader: Load = request.param
    return loader


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_loads_what_was_written(load: Load, tmp_path: Path, dtype: DType) -> None:
    architecture = tiny_architecture()
    weights = random_weights(architecture, dtype)
    write_weights(tmp_path, weights)
    loaded = load(tmp_path, tiny_manifest(architecture, dtype))
    assert loaded.keys() == weights.keys()
    for name, (weight,) in loaded.items():
        assert weight.dtype is weights[name].dtype
        assert torch.equal(weight, weights[name])


def _drop(weights: Weights) -> None:
    del weights["layers.1.down.weight"]


def _add(weights: Weights) -> None:
    weights["layers.9.down.weight"] = torch.zeros(1)


def _reshape(weights: Weights) -> None:
    weights["layers.0.o.weight"] = torch.zeros(32, 31)


def _retype(weights: Weights) -> None:
    weights["norm.weight"] = weights["norm.weight"].half()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (_drop, "lacks layers.1.down.weight"),
        (_add, "has layers.9.down.weight"),
        (_reshape, r"layers.0.o.weight is F32 \(32, 31\), the manifest says F32 \(32, 32\)"),
        (_retype, r"norm.weight is F16 \(32,\), the manifest says F32"),
    ],
)
def test_a_foreign_tensor_is_named(load: Load, tmp_path: Path, spoil: Callable[[Weights], None], message: str) -> None:
    weights = random_weights(tiny_architecture())
    spoil(weights)
    write_weights(tmp_path, weights)
    with pytest.raises(EngineError, match=f"{message}.*rebuild"):
        load(tmp_path, tiny_manifest(tiny_architecture()))


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100])
def test_no_weights_or_garbage(load: Load, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(EngineError, match=r"weights\.safetensors cannot be read.*rebuild"):
        load(tmp_path, tiny_manifest(tiny_architecture()))


def test_truncated(load: Load, tmp_path: Path) -> None:
    write_weights(tmp_path, random_weights(tiny_architecture()))
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineError, match="cannot be read"):
        load(tmp_path, tiny_manifest(tiny_architecture()))


def test_every_flag_brings_its_tensors() -> None:
    plain = weight_shapes(tiny_architecture()).keys()
    moe = Moe(num_experts=3, experts_per_token=2, intermediate_size=4, normalize_top_k=True)
    layers = (Layer(), Layer(is_moe=True))
    flags: dict[str, tuple[dict[str, object], set[str]]] = {
        "qkv_bias": ({"qkv_bias": True}, {"qkv.bias"}),
        "o_bias": ({"o_bias": True}, {"o.bias"}),
        "mlp_bias": ({"mlp_bias": True}, {"gate_up.bias", "down.bias"}),
        "qk_norm": ({"qk_norm": True}, {"q_norm.weight", "k_norm.weight"}),
        "post_norms": ({"post_norms": True}, {"post_attn_norm.weight", "post_mlp_norm.weight"}),
        "moe": ({"moe": moe, "layers": layers}, {"router.weight", "experts.gate_up.weight", "experts.down.weight"}),
    }
    for changes, names in flags.values():
        added = weight_shapes(tiny_architecture(**changes)).keys() - plain
        assert {name.removeprefix("layers.1.") for name in added if name.startswith("layers.1.")} == names
    assert weight_shapes(tiny_architecture(tie_embeddings=False)).keys() - plain == {"lm_head.weight"}


def quantized_weights() -> Weights:
    """The tiny engine's weights with codes for layer 0's o (int4) and layer 1's qkv (int8)."""
    weights = random_weights(tiny_architecture())
    del weights["layers.0.o.weight"], weights["layers.1.qkv.weight"]
    return weights | {
        "layers.0.o.codes": torch.randint(256, (32, 16), dtype=torch.uint8),
        "layers.0.o.scales": torch.rand(32, 1).half(),
        "layers.0.o.offsets": torch.randn(32, 1).half(),
        "layers.1.qkv.codes": torch.randint(-127, 128, (64, 32), dtype=torch.int8),
        "layers.1.qkv.scales": torch.rand(64, 1).half(),
    }


def quantized_manifest() -> EngineManifest:
    quantization = Quantization(weights=WeightType.SOURCE)
    return tiny_manifest(tiny_architecture()).model_copy(update={"quantization": quantization})


def test_codes_come_as_one_matrix_under_the_weight_s_own_name(load: Load, tmp_path: Path) -> None:
    weights = quantized_weights()
    write_weights(tmp_path, weights)
    loaded = load(tmp_path, quantized_manifest())
    assert loaded.keys() == weight_shapes(tiny_architecture()).keys()
    for name, parts in (("layers.0.o", ("codes", "scales", "offsets")), ("layers.1.qkv", ("codes", "scales"))):
        for tensor, part in zip(loaded[f"{name}.weight"], parts, strict=True):
            assert tensor.dtype is weights[f"{name}.{part}"].dtype
            assert torch.equal(tensor, weights[f"{name}.{part}"])


def test_a_matrix_knows_its_shape_and_its_bits(tmp_path: Path) -> None:
    write_weights(tmp_path, quantized_weights())
    by_torch = load_weights(tmp_path, quantized_manifest(), CPU)
    by_numpy = cpu_weights.load_weights(tmp_path, quantized_manifest())
    for name, bits, number_format in (("layers.0.o", 4, Format.INT4), ("layers.1.qkv", 8, Format.INT8)):
        matrix = by_torch[f"{name}.weight"]
        assert isinstance(matrix, QuantizedMatrix)
        assert matrix.bits == bits
        assert by_numpy[f"{name}.weight"].format is number_format
        assert matrix.shape == by_numpy[f"{name}.weight"].shape == weight_shapes(tiny_architecture())[f"{name}.weight"]
    assert isinstance(by_torch["layers.0.qkv.weight"], torch.Tensor)
    assert by_numpy["layers.0.qkv.weight"].format is Format.FLOAT32


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_bfloat16_is_rounded_and_read_as_torch_does(numbers: list[float]) -> None:
    for number in numbers:
        rounded = torch.tensor(number).bfloat16()
        assert cpu_weights.to_bfloat16(number) == float(rounded)
        assert to_floats(rounded[None].view(torch.uint16).numpy())[0] == float(rounded)


def test_codes_without_a_word_in_the_manifest_are_refused(load: Load, tmp_path: Path) -> None:
    write_weights(tmp_path, quantized_weights())
    with pytest.raises(EngineError, match=r"lacks layers.0.o.weight .*rebuild"):
        load(tmp_path, tiny_manifest(tiny_architecture()))


@pytest.mark.parametrize(
    "spoiled, message",
    [
        ({"layers.0.o.codes": torch.zeros(32, 32, dtype=torch.uint8)}, r"o.codes is U8 \(32, 32\), .* U8 \(32, 16\)"),
        ({"layers.0.o.codes": torch.zeros(32, 16, dtype=torch.int8)}, r"o.codes is I8 \(32, 16\), .* U8 \(32, 16\)"),
        ({"layers.0.o.offsets": torch.zeros(32, 2).half()}, r"o.offsets is F16 \(32, 2\), .* F16 \(32, 1\)"),
        ({"layers.1.qkv.scales": torch.zeros(64, 1)}, r"qkv.scales is F32 \(64, 1\), .* F16 \(64, 1\)"),
        ({"layers.1.qkv.scales": None}, "lacks layers.1.qkv.scales"),
        ({"layers.1.qkv.weight": torch.zeros(64, 32)}, "has layers.1.qkv.weight"),
        ({"layers.1.norm.codes": torch.zeros(1, 32, dtype=torch.int8)}, "has layers.1.norm.codes"),
        (
            {"layers.1.down.weight": None, "layers.1.down.codes": torch.zeros(32, 48).char()},
            "lacks layers.1.down.weight",
        ),
    ],
)
def test_foreign_codes_are_named(
    load: Load, tmp_path: Path, spoiled: dict[str, torch.Tensor | None], message: str
) -> None:
    merged = quantized_weights() | spoiled
    write_weights(tmp_path, {name: weight for name, weight in merged.items() if weight is not None})
    with pytest.raises(EngineError, match=f"{message}.*rebuild"):
        load(tmp_path, quantized_manifest())


BLOCK = (12, 20)


def fp8_weights() -> Weights:
    """Layer 0's o with a scale a row, layer 1's qkv with one a block."""
    weights = random_weights(tiny_architecture())
    del weights["layers.0.o.weight"], weights["layers.1.qkv.weight"]
    return weights | {
        "layers.0.o.codes": torch.randn(32, 32).to(torch.float8_e4m3fn),
        "layers.0.o.scales": torch.rand(32),
        "layers.1.qkv.codes": torch.randn(64, 32).to(torch.float8_e4m3fn),
        "layers.1.qkv.scales": torch.rand(6, 2),
    }


def fp8_manifest(block: tuple[int, int] | None = BLOCK) -> EngineManifest:
    quantization = Quantization(weights=WeightType.SOURCE, fp8_block=block)
    return tiny_manifest(tiny_architecture()).model_copy(update={"quantization": quantization})


def test_scales_of_rows_and_of_blocks_stand_side_by_side(tmp_path: Path) -> None:
    stored = fp8_weights()
    write_weights(tmp_path, stored)
    weights = load_weights(tmp_path, fp8_manifest(), CPU)
    for name, block in (("layers.0.o", None), ("layers.1.qkv", BLOCK)):
        matrix = weights[f"{name}.weight"]
        assert isinstance(matrix, Fp8Matrix)
        assert matrix.block == block
        assert matrix.shape == weight_shapes(tiny_architecture())[f"{name}.weight"]
        assert matrix.scales.equal(stored[f"{name}.scales"])


@pytest.mark.parametrize(
    "spoiled, block, message",
    [
        ({}, None, r"qkv.scales is F32 \(6, 2\), .* F32 \(64,\)"),
        ({}, (64, 32), r"qkv.scales is F32 \(6, 2\), .* F32 \(1, 1\)"),
        ({"layers.1.qkv.scales": torch.rand(6, 1)}, BLOCK, r"qkv.scales is F32 \(6, 1\), .* F32 \(6, 2\)"),
        ({"layers.0.o.scales": torch.rand(31)}, BLOCK, r"o.scales is F32 \(31,\), .* F32 \(32,\)"),
        ({"layers.0.o.scales": torch.rand(32).half()}, BLOCK, r"o.scales is F16 \(32,\), .* F32 \(32,\)"),
        ({"layers.0.o.codes": torch.rand(32, 30).to(torch.float8_e4m3fn)}, BLOCK, r"o.codes is F8_E4M3 \(32, 30\)"),
    ],
)
def test_scales_that_do_not_fit_are_named(
    load: Load, tmp_path: Path, spoiled: Weights, block: tuple[int, int] | None, message: str
) -> None:
    write_weights(tmp_path, fp8_weights() | spoiled)
    with pytest.raises(EngineError, match=f"{message}.*rebuild"):
        load(tmp_path, fp8_manifest(block))
