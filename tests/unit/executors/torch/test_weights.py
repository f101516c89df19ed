from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_weights
from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import WEIGHTS_NAME, DType, Layer, Moe
from trierarch.python_backend.executors.torch.weights import load_weights, weight_shapes

CPU = torch.device("cpu")
Weights = dict[str, torch.Tensor]


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_loads_what_was_written(tmp_path: Path, dtype: DType) -> None:
    architecture = tiny_architecture()
    weights = random_weights(architecture, dtype)
    write_weights(tmp_path, weights)
    loaded = load_weights(tmp_path, tiny_manifest(architecture, dtype), CPU)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


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
def test_a_foreign_tensor_is_named(tmp_path: Path, spoil: Callable[[Weights], None], message: str) -> None:
    weights = random_weights(tiny_architecture())
    spoil(weights)
    write_weights(tmp_path, weights)
    with pytest.raises(EngineError, match=f"{message}.*rebuild"):
        load_weights(tmp_path, tiny_manifest(tiny_architecture()), CPU)


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100])
def test_no_weights_or_garbage(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(EngineError, match=r"weights\.safetensors cannot be read.*rebuild"):
        load_weights(tmp_path, tiny_manifest(tiny_architecture()), CPU)


def test_truncated(tmp_path: Path) -> None:
    write_weights(tmp_path, random_weights(tiny_architecture()))
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineError, match="cannot be read"):
        load_weights(tmp_path, tiny_manifest(tiny_architecture()), CPU)


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
