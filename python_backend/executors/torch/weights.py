"""Weights: the engine's tensors, mapped from disk after their names, shapes and types are checked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import safetensors
import torch

from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import GROUP_SIZE, WEIGHTS_NAME, Architecture, DType, EngineManifest, Layer
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix

Weights = Mapping[str, torch.Tensor | QuantizedMatrix]
"""By the names in `builder/manifest.py`; a quantised matrix goes by the name it has unquantised."""

TORCH_DTYPES: Final = {
    DType.FLOAT32: torch.float32,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT16: torch.float16,
}
_SAFETENSORS_DTYPES: Final = {DType.FLOAT32: "F32", DType.BFLOAT16: "BF16", DType.FLOAT16: "F16"}
_REBUILD: Final = "rebuild the engine with: trierarch build"


def load_weights(engine: Path, manifest: EngineManifest, device: torch.device) -> Weights:
    """Every weight by the name `builder/manifest.py` gives it; on the CPU they are views of the mapped file.

    Raises:
        EngineError: the file is missing or corrupt, or differs from the manifest in a name, a shape or a type.
    """
    path = engine / WEIGHTS_NAME
    shapes = weight_shapes(manifest.architecture)
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            present = frozenset(file.keys())
            stored = {name: _stored_as(name, shape, manifest, present) for name, shape in shapes.items()}
            wanted = {name: entry for entries in stored.values() for name, entry in entries.items()}
            _check_names(path, wanted.keys(), present)
            for name, (dtype, shape) in wanted.items():
                header = file.get_slice(name)
                found = (header.get_dtype(), tuple(header.get_shape()))
                if found != (dtype, shape):
                    raise EngineError(
                        f"{path}: {name} is {found[0]} {found[1]}, the manifest says {dtype} {shape}; {_REBUILD}"
                    )
            return {name: _read(file, list(entries)) for name, entries in stored.items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise EngineError(f"{path} cannot be read ({error}); {_REBUILD}") from error


def _stored_as(
    name: str, shape: tuple[int, ...], manifest: EngineManifest, present: Collection[str]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (type, shape) of the tensors that hold a weight: itself, or what quantised it."""
    stem = name.removesuffix(".weight")
    *rows, in_features = shape
    may_quantize = manifest.architecture.may_quantize(name) and in_features % GROUP_SIZE == 0
    if manifest.quantization is None or not may_quantize or f"{stem}.codes" not in present:
        return {name: (_SAFETENSORS_DTYPES[_dtype(name, manifest.dtype)], shape)}
    groups = ("F16", (*rows, in_features // GROUP_SIZE))
    if f"{stem}.offsets" not in present:
        return {f"{stem}.codes": ("I8", shape), f"{stem}.scales": groups}
    return {f"{stem}.codes": ("U8", (*rows, in_features // 2)), f"{stem}.scales": groups, f"{stem}.offsets": groups}


def _read(file: Any, names: list[str]) -> torch.Tensor | QuantizedMatrix:
    tensors = [file.get_tensor(name) for name in names]
    if len(tensors) == 1:
        weight: torch.Tensor = tensors[0]
        return weight
    codes, scales, *offsets = tensors
    return QuantizedMatrix(codes, scales, offsets[0] if offsets else None)


def weight_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight the architecture computes with, as `builder/manifest.py` lays them out."""
    table = (architecture.vocab_size, architecture.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": table, "norm.weight": table[1:]}
    if not architecture.tie_embeddings:
        shapes["lm_head.weight"] = table
    for index, rope in enumerate(architecture.ropes):
        shapes[f"rope.{index}.inv_freq"] = (rope.rotary_dim // 2,)
    for index, layer in enumerate(architecture.layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in _layer_shapes(architecture, layer)}
    return shapes


def _layer_shapes(architecture: Architecture, layer: Layer) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, head_dim, inner = architecture.hidden_size, architecture.head_dim, architecture.intermediate_size
    q_rows = architecture.num_heads * head_dim
    qkv_rows = q_rows + 2 * architecture.num_kv_heads * head_dim
    norms = ["attn_norm", "mlp_norm"]
    if architecture.post_norms:
        norms += ["post_attn_norm", "post_mlp_norm"]
    yield from ((f"{name}.weight", (hidden,)) for name in norms)
    if architecture.qk_norm:
        yield from ((f"{name}.weight", (head_dim,)) for name in ("q_norm", "k_norm"))
    yield from _linear_shapes("qkv", qkv_rows, hidden, architecture.qkv_bias)
    yield from _linear_shapes("o", hidden, q_rows, architecture.o_bias)
    if layer.is_moe:
        assert architecture.moe is not None
        experts, inner = architecture.moe.num_experts, architecture.moe.intermediate_size
        yield "router.weight", (experts, hidden)
        yield "experts.gate_up.weight", (experts, 2 * inner, hidden)
        yield "experts.down.weight", (experts, hidden, inner)
    else:
        yield from _linear_shapes("gate_up", 2 * inner, hidden, architecture.mlp_bias)
        yield from _linear_shapes("down", hidden, inner, architecture.mlp_bias)


def _linear_shapes(
    name: str, out_features: int, in_features: int, has_bias: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out_features, in_features)
    if has_bias:
        yield f"{name}.bias", (out_features,)


def _dtype(name: str, dtype: DType) -> DType:
    return DType.FLOAT32 if name.endswith(("norm.weight", ".inv_freq")) else dtype


def _check_names(path: Path, expected: Iterable[str], found: Iterable[str]) -> None:
    wanted, present = set(expected), set(found)
    if missing := sorted(wanted - present):
        raise EngineError(f"{path} lacks {missing[0]} ({len(missing)} missing); {_REBUILD}")
    if extra := sorted(present - wanted):
        raise EngineError(f"{path} has {extra[0]}, which the manifest does not name ({len(extra)} extra); {_REBUILD}")
