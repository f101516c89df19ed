"""Every kernel compiles for the GPUs it is for, as it is launched, and fits their shared memory. No GPU is needed."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import pytest
import torch

from support.coded_matrices import KINDS, coded_matrix
from support.fused_layers import HeadsCase
from support.kernel_compiler import Launches
from support.packed_adapters import random_packed, taking_adapters
from support.ragged_attention import RaggedCase
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.manifest import Activation, DType, KvType, Layer
from trierarch.python_backend.executors.torch.adapted_rows import OwnedRows
from trierarch.python_backend.executors.torch.adapter import TorchAdapter
from trierarch.python_backend.executors.torch.attention_backend import AttentionShape
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv
from trierarch.python_backend.executors.torch.residual import Residual

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton's language is not installed")

CPU = torch.device("cpu")
SHARED_MEMORY = {80: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Compute capability -> bytes that a block may have; of 8.0, which has more, what 8.6 has, where the same code runs (CUDA
C++ Programming Guide, "Technical Specifications per Compute Capability")."""


@dataclass(frozen=True)
class Heads:
    """What a kernel is compiled anew for."""

    dtype: torch.dtype
    kv_dtype: torch.dtype
    head_dim: int
    group: int
    max_length: int
    window: int | None = None
    softcap: float | None = None
    num_processors: int = 1


ATTENTIONS = {
    "decoding, shared out": Heads(torch.bfloat16, torch.bfloat16, 128, 4, 4, num_processors=132),
    "prompts": Heads(torch.bfloat16, torch.bfloat16, 128, 4, 60),
    "gemma": Heads(torch.bfloat16, torch.bfloat16, 256, 2, 60, window=9, softcap=50.0),
    "odd heads, int8": Heads(torch.float16, torch.int8, 80, 1, 60),
    "float32": Heads(torch.float32, torch.float32, 128, 8, 60),
    "fp8": Heads(torch.bfloat16, torch.float8_e4m3fn, 128, 8, 60),
}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("heads", ATTENTIONS.values(), ids=ATTENTIONS)
def test_attention(heads: Heads, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    is_fp8 = heads.kv_dtype is torch.float8_e4m3fn  # which is younger than 8.0
    check(attention_launches(heads, monkeypatch), max(capability, 89) if is_fp8 else capability)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype, num_rows", [(DType.BFLOAT16, 1), (DType.BFLOAT16, 200), (DType.FLOAT16, 20)])
def test_adapters(dtype: DType, num_rows: int, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(adapter_launches(dtype, num_rows, monkeypatch), capability)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("num_rows", [1, 200])
def test_experts(num_rows: int, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from trierarch.python_backend.executors.torch.kernels import expert_product
    from trierarch.python_backend.executors.torch.kernels.grouped_experts import GroupedExperts

    launches = Launches().record(expert_product, ("multiply",), monkeypatch)
    gate_up, down = (torch.empty(size, dtype=torch.bfloat16) for size in ((4, 256, 512), (4, 512, 128)))
    experts = GroupedExperts(gate_up, down, lambda x: x[:, :128].contiguous())
    x = torch.empty((num_rows, 512), dtype=torch.bfloat16)
    experts(x, torch.zeros((num_rows, 2), dtype=torch.int64), torch.ones((num_rows, 2)))
    assert len(launches) == 2
    assert launches[0].arguments["BLOCK_M"] == (16 if num_rows == 1 else 64)
    check(launches, capability)


def test_adapters_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    check(adapter_launches(DType.FLOAT32, 1, monkeypatch), 80)


@pytest.mark.parametrize("capability", [100, 120])
def test_blackwell(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(attention_launches(ATTENTIONS["prompts"], monkeypatch), capability)
    check(adapter_launches(DType.BFLOAT16, 1, monkeypatch), capability)
    check(product_launches("int4", torch.bfloat16, capability, monkeypatch), capability)
    check(row_launches(KvType.FP8, torch.bfloat16, monkeypatch), capability)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kv_type", [KvType.BFLOAT16, KvType.INT8, KvType.FP8])
def test_rows(kv_type: KvType, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    is_fp8 = kv_type is KvType.FP8  # which is younger than 8.0
    check(row_launches(kv_type, torch.bfloat16, monkeypatch), max(capability, 89) if is_fp8 else capability)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", KINDS)
def test_products(kind: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(product_launches(kind, torch.bfloat16, capability, monkeypatch), capability)


def test_products_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    check(product_launches("int4", torch.float32, 80, monkeypatch), 80)


def attention_launches(heads: Heads, monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Of a step's attention in one layer."""
    from trierarch.python_backend.executors.torch.kernels import paged_attention
    from trierarch.python_backend.executors.torch.kernels.ragged_attention import RaggedAttention

    launches = Launches().record(paged_attention, ("attend", "merge"), monkeypatch)
    case = RaggedCase(1, group=heads.group, head_dim=heads.head_dim, block_size=16, max_length=heads.max_length)
    backend = RaggedAttention(heads.group, heads.num_processors, min_keys_per_split=1)
    batch = InputBatch.build(case.plan(), {heads.window}, BlockShape(16, 2, 0), heads.dtype, CPU, backend)
    array = torch.empty((2, case.num_blocks, 2, 16, heads.head_dim), dtype=heads.kv_dtype)
    layer = LayerKv(array, torch.empty(array.shape[:-1]) if heads.kv_dtype.itemsize == 1 else None)
    queries = torch.empty((batch.num_tokens, case.num_heads, heads.head_dim), dtype=heads.dtype)
    batch.attention[heads.window](queries, layer, AttentionShape(2, 0.1, heads.softcap))
    is_decoding = heads.num_processors > 1
    assert [launch.kernel.__name__ for launch in launches] == (["attend", "merge"] if is_decoding else ["attend"])
    assert launches[0].arguments["BLOCK_M"] == (16 if is_decoding else 64)
    return launches


def adapter_launches(dtype: DType, num_rows: int, monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Of a step whose rows all have one adapter."""
    from trierarch.python_backend.executors.torch.kernels import grouped_lora
    from trierarch.python_backend.executors.torch.kernels.grouped_adapters import GroupedAdapters

    launches = Launches().record(grouped_lora, ("embed", "shrink", "expand", "replace"), monkeypatch)
    architecture = tiny_architecture(hidden_size=4096, layers=(Layer(),), qkv_bias=True)
    manifest = taking_adapters(tiny_manifest(architecture, dtype), max_rank=64)
    assert manifest.lora is not None
    member = TorchAdapter(architecture, random_packed(manifest, pieces=("q",)), CPU)
    backend = GroupedAdapters(architecture, manifest.lora, CPU)
    rows = backend.adapt([OwnedRows(tuple(range(num_rows)), 1, member)])
    assert rows is not None
    x = torch.empty((num_rows, 4096), dtype=member.pieces["layers.0.qkv"][0].a.dtype)
    rows.embed(torch.zeros(num_rows, dtype=torch.int64), x, 1.5)
    rows.add("layers.0.qkv", x, x.new_empty((num_rows, 64)), x.new_empty(64))
    rows.add("lm_head", x, x.new_empty((num_rows, 50)), None)
    assert {launch.kernel.__name__ for launch in launches} == {"embed", "shrink", "expand", "replace"}
    return launches


def product_launches(kind: str, dtype: torch.dtype, capability: int, monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Of a matrix that is shared out, times one row, a small tile, a large one, and a prompt's rows."""
    from trierarch.python_backend.executors.torch.kernels import coded_products
    from trierarch.python_backend.executors.torch.kernels.coded_linear import CodedLinear, FewRowsLinear
    from trierarch.python_backend.executors.torch.kernels.coded_matrix import CodedMatrix

    launches = Launches().record(
        coded_products, ("multiply_rows", "multiply_tiles", "add_shares", "dequantize"), monkeypatch
    )
    matrix = CodedMatrix.of(coded_matrix(kind, 64, 2048), num_processors=132, has_e4m3=capability >= 89)
    linear = CodedLinear(matrix, torch.empty(64, dtype=dtype))
    for num_rows in (1, 16, 64, 65):
        linear(torch.empty((num_rows, 2048), dtype=dtype))
    if kind == "fp8" and capability >= 89:
        FewRowsLinear(matrix, None, linear)(torch.empty((1, 2048), dtype=dtype))
    names = [launch.kernel.__name__ for launch in launches]
    assert names[:7] == ["multiply_rows", "add_shares", *["multiply_tiles", "add_shares"] * 2, "dequantize"]
    return launches


def row_launches(kv_type: KvType, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Of what lies between products in a layer of Llama 3.1's sizes, and in one that normalises queries and keys."""
    from trierarch.python_backend.executors.torch.kernels import fused_rows
    from trierarch.python_backend.executors.torch.kernels.fused_layers import FusedLayers
    from trierarch.python_backend.executors.torch.kernels.fused_parts import quantize_rows

    names = ("normalize", "gate", "quantize", "place_heads")
    launches = Launches().record(fused_rows, names, monkeypatch)
    backend = FusedLayers(CPU, num_processors=132)
    x = torch.empty((2, 4096), dtype=dtype)
    backend.norm(torch.empty(4096), 1e-5).of_sum(Residual(x, x))
    for activation in Activation:
        backend.gate(activation)(torch.empty((2, 2 * 14336), dtype=dtype))
    if kv_type is KvType.FP8:
        quantize_rows(torch.empty((2, 14336), dtype=dtype), torch.float8_e4m3fn)
    for has_norm in (False, True):
        HeadsCase(32, 8, 128, 128, has_norm, kv_type, dtype).run(backend, CPU)
    assert {launch.kernel.__name__ for launch in launches} == set(names) - (
        set() if kv_type is KvType.FP8 else {"quantize"}
    )
    return launches


def check(launches: Launches, capability: int) -> None:
    """All compile and fit."""
    for launch in launches:
        compiled = launch.compile(capability)
        assert "cubin" in compiled.asm, launch.kernel.__name__
        assert compiled.metadata.shared <= SHARED_MEMORY[capability], launch.kernel.__name__
