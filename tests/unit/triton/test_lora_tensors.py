"""TensorRT-LLM's LoRA tensors become what PEFT's files become, and nothing else becomes anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.adapters import random_adapter
from support.checkpoints import random_checkpoint
from support.lora_npy import load_npy, lora_arrays, save_npy
from support.packed_adapters import random_packed, taking_adapters
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.adapter import AdapterTensors, to_floats
from trierarch.builder.adapter_source import read_adapter
from trierarch.builder.build import build
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import DType, EngineManifest, Layer, Moe
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.triton.adapter_inputs import LoraTensors
from trierarch.python_backend.triton.lora_tensors import read_lora

ENGINE = taking_adapters(tiny_manifest(tiny_architecture()), max_rank=8)
"""Hidden size 32, 32 queries, 16 keys, inner size 48, two layers."""
IDS = {"q": 1, "k": 2, "v": 3, "o": 4, "gate": 5, "down": 6, "up": 7}


def sent(adapter: AdapterTensors) -> LoraTensors:
    """As a client would send it."""
    rows, modules = [], []
    for name, a in adapter.arrays.items():
        if name.endswith(".a"):
            _, layer, piece, _ = name.split(".")
            b = adapter.arrays[name[:-1] + "b"]
            rows.append(np.concatenate([to_floats(a).reshape(-1), to_floats(b).reshape(-1)]))
            modules.append([IDS[piece], int(layer), a.shape[0]])
    weights = np.zeros((len(rows), max(row.size for row in rows)), np.float16)
    for index, row in enumerate(rows):
        weights[index, : row.size] = row
    return LoraTensors(weights, np.array(modules, np.int32))


def row(module: int, layer: int, rank: int, length: int) -> LoraTensors:
    return LoraTensors(np.full((1, length), 0.5, np.float16), np.array([[module, layer, rank]], np.int32))


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16])
def test_what_is_sent_is_what_arrives_in_the_engines_type(dtype: DType) -> None:
    engine = taking_adapters(tiny_manifest(tiny_architecture(), dtype))
    half = taking_adapters(tiny_manifest(tiny_architecture(), DType.FLOAT16))
    adapter = random_packed(half, rank=3)
    read = read_lora(sent(adapter), engine, "task 7")
    assert read.arrays.keys() == adapter.arrays.keys()
    # bfloat16 has 8 bits where float16 has 11.
    tolerance = 2**-8 if dtype is DType.BFLOAT16 else 0.0
    for name, array in adapter.arrays.items():
        np.testing.assert_allclose(to_floats(read.arrays[name]), to_floats(array), rtol=tolerance, atol=0)
    assert (read.manifest.rank, read.manifest.dtype, read.manifest.source) == (3, dtype, "task 7")
    assert read_lora(sent(adapter), engine, "again").manifest.digest == read.manifest.digest


@given(
    st.sets(st.tuples(st.sampled_from(sorted(IDS)), st.integers(0, 1)), min_size=1),
    st.integers(1, 8),
    st.integers(0, 2**32),
)
def test_any_modules_of_any_layers(chosen: set[tuple[str, int]], rank: int, seed: int) -> None:
    adapter = random_packed(ENGINE, rank=rank, seed=seed)
    some = {
        name: array for name, array in adapter.arrays.items() if (name.split(".")[2], int(name.split(".")[1])) in chosen
    }
    read = read_lora(sent(AdapterTensors(adapter.manifest, some)), ENGINE, "x")
    assert read.arrays.keys() == some.keys()
    assert set(read.manifest.pieces) == {piece for piece, _ in chosen}


def test_fused_modules_share_their_input() -> None:
    qkv = row(0, 1, 2, 2 * (32 + 64))
    qkv.weights[0] = np.arange(192)
    read = read_lora(qkv, ENGINE, "x").arrays
    assert all(np.array_equal(read[f"layers.1.{piece}.a"], np.arange(64).reshape(2, 32)) for piece in "qkv")
    stacked = np.concatenate([read[f"layers.1.{piece}.b"] for piece in "qkv"])
    assert np.array_equal(stacked, np.arange(64, 192).reshape(64, 2))
    gate_up = row(18, 0, 1, 32 + 96)
    gate_up.weights[0] = np.arange(128)
    read = read_lora(gate_up, ENGINE, "x").arrays
    assert np.array_equal(read["layers.0.up.b"].reshape(-1), np.arange(32, 80))
    assert np.array_equal(read["layers.0.gate.b"].reshape(-1), np.arange(80, 128))


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2", "gemma3"])
def test_it_is_the_adapter_that_peft_saved(family: str, tmp_path: Path) -> None:
    """Numbers of float16 and a scale that is a power of two: not a bit is lost on either way."""
    checkpoint = random_checkpoint(family, tmp_path / "checkpoint")
    engine = tmp_path / "engine"
    build(BuildConfig(model=str(checkpoint), output=engine, dtype=DType.FLOAT32, compile=False))
    manifest = EngineManifest.load(engine)
    peft = random_adapter(checkpoint, tmp_path / "peft", rank=8, alpha=16, dtype=torch.float16)
    arrays = load_npy(save_npy(peft, tmp_path / "npy"))
    read = read_lora(LoraTensors(arrays["lora_weights"][0], arrays["lora_config"][0]), manifest, "x")
    packed = read_adapter(peft, engine, manifest)
    assert read.arrays.keys() == packed.arrays.keys()
    assert read.manifest.digest == packed.manifest.digest


BAD: list[tuple[LoraTensors, str]] = [
    (row(1, 0, 9, 9 * 64), r"^lora_config\[0\] is 'adapter size 9': this engine takes 8"),
    (row(1, 0, 0, 64), r"^lora_config\[0\] is 'adapter size 0': must be at least 1"),
    (row(1, 2, 1, 64), r"^lora_config\[0\] is 'layer 2': this engine has layers 0 to 1"),
    (row(1, -1, 1, 64), r"^lora_config\[0\] is 'layer -1'"),
    (row(8, 0, 1, 64), r"^lora_config\[0\] is 'module 8 cross_attn_qkv': engines here adapt 0 attn_qkv"),
    (row(13, 0, 1, 64), r"^lora_config\[0\] is 'module 13 moe_h_to_4h'"),
    (row(99, 0, 1, 64), r"^lora_config\[0\] is 'module 99'"),
    (row(-1, 0, 1, 64), r"^lora_config\[0\] is 'module -1'"),
    (
        row(1, 0, 2, 127),
        r"^lora_weights\[0\] is 127: attn_q of rank 2 has 128 numbers in this engine: 2 x \(32 \+ 32\)",
    ),
    (row(1, 0, 1, 65), r"^lora_weights\[0\] is 65: there are numbers behind the 64 that attn_q of rank 1 has"),
    (
        LoraTensors(np.zeros((2, 64), np.float16), np.zeros((1, 3), np.int32)),
        "^lora_config is 1: must have a row for each",
    ),
    (LoraTensors(np.zeros(64, np.float16), np.zeros((1, 3), np.int32)), "^lora_weights is .*must be FP16 of shape"),
    (LoraTensors(np.zeros((1, 64), np.float32), np.zeros((1, 3), np.int32)), "^lora_weights is .*must be FP16"),
    (
        LoraTensors(np.zeros((1, 64), np.float16), np.zeros((1, 4), np.int32)),
        "^lora_config is .*must be INT32 of shape",
    ),
    (LoraTensors(np.zeros((1, 64), np.float16), np.zeros((1, 3), np.int64)), "^lora_config is .*must be INT32"),
]


@pytest.mark.parametrize(("tensors", "says"), BAD)
def test_what_is_no_adapter_of_this_engine_is_refused(tensors: LoraTensors, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read_lora(tensors, ENGINE, "x")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_no_nan_and_no_infinity(number: float) -> None:
    tensors = row(1, 0, 1, 64)
    tensors.weights[0, 63] = number
    with pytest.raises(InvalidRequest, match=r"^lora_weights\[0\] is 'NaN or infinity'"):
        read_lora(tensors, ENGINE, "x")


def test_a_module_is_sent_once() -> None:
    tensors = LoraTensors(np.zeros((2, 200), np.float16), np.array([[0, 1, 1], [2, 1, 1]], np.int32))
    with pytest.raises(InvalidRequest, match=r"^lora_config\[1\] is 'module attn_k': layers\.1\.k is in a row before"):
        read_lora(tensors, ENGINE, "x")


def test_experts_are_not_adapted() -> None:
    moe: dict[str, Any] = {
        "layers": (Layer(), Layer(is_moe=True)),
        "moe": Moe(num_experts=4, experts_per_token=2, intermediate_size=16, normalize_top_k=True),
    }
    engine = taking_adapters(tiny_manifest(tiny_architecture(**moe)))
    assert read_lora(row(5, 0, 1, 80), engine, "x").manifest.pieces == ("gate",)
    with pytest.raises(
        InvalidRequest, match=r"^lora_config\[0\] is 'module mlp_h_to_4h': layers\.1\.gate is of experts"
    ):
        read_lora(row(5, 1, 1, 80), engine, "x")


def test_it_must_have_room() -> None:
    engine = taking_adapters(tiny_manifest(tiny_architecture()), host_bytes=255)
    with pytest.raises(InvalidRequest, match=r"^lora_weights is \(1, 64\): is 256 bytes .* room for 255"):
        read_lora(row(1, 0, 1, 64), engine, "x")
    with pytest.raises(InvalidRequest, match=r"^lora_weights is \(1, 64\): .* takes no adapters"):
        read_lora(row(1, 0, 1, 64), tiny_manifest(tiny_architecture()), "x")


def test_the_clients_files_have_a_batch_dimension(tmp_path: Path) -> None:
    checkpoint = random_checkpoint("llama", tmp_path / "checkpoint")
    weights, config = lora_arrays(
        random_adapter(checkpoint, tmp_path / "peft", rank=4, targets=["q_proj", "down_proj"])
    )
    assert weights.shape == (1, 6, 4 * (96 + 64))
    assert config.tolist()[0][:2] == [[6, 0, 4], [1, 0, 4]]
