"""The weights an engine must hold: names, shapes and types, as `builder/manifest.py` lays them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import (
    GROUP_SIZE,
    Architecture,
    DrafterKind,
    DType,
    EngineManifest,
    Head,
    Layer,
)
from trierarch.builder.safetensors_header import Header

_SAFETENSORS_DTYPES: Final = {DType.FLOAT32: "F32", DType.BFLOAT16: "BF16", DType.FLOAT16: "F16"}
REBUILD: Final = "rebuild the engine with: trierarch build"


def check_tensors(path: Path, manifest: EngineManifest, found: Mapping[str, Header]) -> dict[str, list[str]]:
    """Weight -> names of the tensors of the file at `path` that hold it: itself, or codes, scales and offsets.

    A quantised matrix goes by the name it has unquantised.

    Raises:
        EngineError: the file differs from the manifest in a name, a shape or a type.
    """
    shapes = weight_shapes(manifest.architecture, manifest.head)
    stored = {name: _stored_as(name, shape, manifest, found) for name, shape in shapes.items()}
    wanted = {name: header for headers in stored.values() for name, header in headers.items()}
    _check_names(path, wanted.keys(), found.keys())
    for name, (dtype, shape) in wanted.items():
        if found[name] != (dtype, shape):
            its_dtype, its_shape = found[name]
            raise EngineError(
                f"{path}: {name} is {its_dtype} {its_shape}, the manifest says {dtype} {shape}; {REBUILD}"
            )
    return {name: list(headers) for name, headers in stored.items()}


def unreadable(path: Path, error: Exception) -> EngineError:
    """The error of a file of weights that is missing or corrupt."""
    return EngineError(f"{path} cannot be read ({error}); {REBUILD}")


def weight_shapes(architecture: Architecture, head: Head | None = None) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight the architecture computes with, as `builder/manifest.py` lays them out."""
    table = (architecture.vocab_size, architecture.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": table, "norm.weight": table[1:]}
    if not architecture.tie_embeddings:
        shapes["lm_head.weight"] = table
    for index, rope in enumerate(architecture.ropes):
        shapes[f"rope.{index}.inv_freq"] = (rope.rotary_dim // 2,)
    for index, layer in enumerate(architecture.layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in _layer_shapes(architecture, layer)}
    if head is not None:
        qkv_rows, _ = shapes["layers.0.qkv.weight"]
        shapes |= _head_shapes(architecture, head, qkv_rows)
    return shapes


def _head_shapes(architecture: Architecture, head: Head, qkv_rows: int) -> dict[str, tuple[int, ...]]:
    """What a head has beside, or otherwise."""
    hidden = architecture.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (head.target_vocab_size, hidden),
        "layers.0.qkv.weight": (qkv_rows, head.qkv_inputs(hidden)),
        "head.hidden_norm.weight": (hidden,),
        "head.target_ids": (architecture.vocab_size,),
        "head.fc.weight": (hidden, head.fc_inputs),
    }
    if head.kind is DrafterKind.MTP:
        shapes["head.token_norm.weight"] = (hidden,)
    if head.fc_bias:
        shapes["head.fc.bias"] = (hidden,)
    return shapes


def _stored_as(
    name: str, shape: tuple[int, ...], manifest: EngineManifest, found: Mapping[str, Header]
) -> dict[str, Header]:
    """Name -> (type, shape) of the tensors that hold a weight: itself, or what quantised it."""
    stem = name.removesuffix(".weight")
    *rows, in_features = shape
    quantization, codes = manifest.quantization, found.get(f"{stem}.codes")
    is_fp8 = codes is not None and codes[0] == "F8_E4M3"
    may_quantize = manifest.architecture.may_quantize(name) and (is_fp8 or in_features % GROUP_SIZE == 0)
    if quantization is None or not may_quantize or codes is None:
        return {name: (_stored_type(name, manifest.dtype), shape)}
    if is_fp8:
        scales = tuple(rows)
        if quantization.fp8_block is not None and len(found.get(f"{stem}.scales", ("", ()))[1]) == len(shape):
            num_rows, num_inputs = quantization.fp8_block
            scales = (*rows[:-1], -(-rows[-1] // num_rows), -(-in_features // num_inputs))
        return {f"{stem}.codes": ("F8_E4M3", shape), f"{stem}.scales": ("F32", scales)}
    groups = ("F16", (*rows, in_features // GROUP_SIZE))
    if f"{stem}.offsets" not in found:
        return {f"{stem}.codes": ("I8", shape), f"{stem}.scales": groups}
    return {f"{stem}.codes": ("U8", (*rows, in_features // 2)), f"{stem}.scales": groups, f"{stem}.offsets": groups}


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


def _stored_type(name: str, dtype: DType) -> str:
    if name == "head.target_ids":
        return "I64"
    return _SAFETENSORS_DTYPES[DType.FLOAT32 if name.endswith(("norm.weight", ".inv_freq")) else dtype]


def _check_names(path: Path, expected: Iterable[str], found: Iterable[str]) -> None:
    wanted, present = set(expected), set(found)
    if missing := sorted(wanted - present):
        raise EngineError(f"{path} lacks {missing[0]} ({len(missing)} missing); {REBUILD}")
    if extra := sorted(present - wanted):
        raise EngineError(f"{path} has {extra[0]}, which the manifest does not name ({len(extra)} extra); {REBUILD}")
