"""Where each engine weight comes from: the stacked rows of one or more checkpoint tensors, checked before any is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Final

import torch

from trierarch.builder.architectures import IGNORABLE, Family
from trierarch.builder.checkpoint import Checkpoint
from trierarch.builder.decoder import Decoder
from trierarch.builder.errors import CheckpointError, ConfigError
from trierarch.builder.manifest import GROUP_SIZE, Architecture, DType, Layer, WeightType
from trierarch.builder.quantize import quantize

_TORCH_DTYPES = {DType.FLOAT32: torch.float32, DType.BFLOAT16: torch.bfloat16, DType.FLOAT16: torch.float16}
_NAMES: Final = {DType.FLOAT32: "F32", DType.BFLOAT16: "BF16", DType.FLOAT16: "F16"}
_ITEM_BYTES: Final = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the engine's weights file."""

    name: str
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes in the engine."""
        return prod(self.shape) * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Source:
    """One checkpoint tensor, in the checkpoint's own spelling and shape."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """One engine weight. The bytes of its entries are those of its parts, one after the other."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    sources: tuple[Source, ...] = ()
    offset: float = 0.0
    """Added to each element."""
    value: torch.Tensor | None = None
    """Held here in place of sources: what the configuration alone decides."""
    bits: int | None = None
    """Of its codes, where it is quantised."""
    num_rows: int | None = None
    """That its one source's rows are cut to, or filled up to with zeros."""

    @property
    def num_bytes(self) -> int:
        """Bytes in the engine."""
        return sum(entry.num_bytes for entry in self.entries)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The tensor it is stored as; those that `builder/manifest.py` puts in its place where it is quantised."""
        if self.bits is None:
            return (Entry(self.name, _NAMES[self.dtype], self.shape),)
        stem = self.name.removesuffix(".weight")
        *rows, in_features = self.shape
        scales = Entry(f"{stem}.scales", "F16", (*rows, in_features // GROUP_SIZE))
        if self.bits == 8:
            return Entry(f"{stem}.codes", "I8", self.shape), scales
        return (
            Entry(f"{stem}.codes", "U8", (*rows, in_features // 2)),
            scales,
            replace(scales, name=f"{stem}.offsets"),
        )

    def parts(self, checkpoint: Checkpoint) -> Iterator[torch.Tensor]:
        """Each source in turn, contiguous and as it is stored, so that one tensor at a time is in memory."""
        return self._values(checkpoint) if self.bits is None else self._codes(checkpoint, self.bits)

    def _codes(self, checkpoint: Checkpoint, bits: int) -> Iterator[torch.Tensor]:
        scales, offsets = [], []  # small: they wait until the codes of every source are out
        for source in self.sources:
            if checkpoint.code_bits.get(source.name) == bits:
                part = checkpoint.load_codes(source.name)
            else:
                part = quantize(source.name, checkpoint.load(source.name), bits)
            yield self._fitted(part.codes).contiguous()
            scales.append(self._fitted(part.scales).contiguous())
            if part.offsets is not None:
                offsets.append(self._fitted(part.offsets).contiguous())
        yield from scales
        yield from offsets

    def _values(self, checkpoint: Checkpoint) -> Iterator[torch.Tensor]:
        loaded = [self.value] if self.value is not None else (checkpoint.load(one.name) for one in self.sources)
        for tensor in loaded:
            shifted = tensor.float() + self.offset if self.offset else tensor
            yield self._fitted(shifted.to(_TORCH_DTYPES[self.dtype])).contiguous()

    def _fitted(self, rows: torch.Tensor) -> torch.Tensor:
        if self.num_rows is None:
            return rows
        missing = rows.new_zeros(max(0, self.num_rows - len(rows)), *rows.shape[1:])
        return torch.cat([rows[: self.num_rows], missing])


@dataclass(frozen=True, slots=True)
class _Linear:
    """Rows that are stacked, and what each maps from; `copies` of it for experts."""

    rows: tuple[int, ...]
    in_features: int
    has_bias: bool = False
    copies: int | None = None


def plan_weights(
    decoder: Decoder, checkpoint: Checkpoint, dtype: DType, quantization: WeightType | None = None
) -> tuple[Weight, ...]:
    """Every weight of the engine, matched with the checkpoint's tensors by name and shape.

    Raises:
        CheckpointError: tensors are missing, misshapen, or nobody's.
        ConfigError: a matrix's shape does not allow `quantization`, or the checkpoint has no codes to keep.
    """
    architecture, family = decoder.architecture, decoder.family
    spelling = _spelling(checkpoint.shapes, family)
    offset = 0.0 if checkpoint.has_folded_norms else family.norm_offset
    weights = [
        *_outer_weights(architecture, dtype, offset),
        *(
            weight
            for index, layer in enumerate(architecture.layers)
            for weight in _layer_weights(architecture, family, layer, index, dtype, offset)
        ),
    ]
    named = tuple(
        replace(one, sources=tuple(replace(part, name=spelling.get(part.name, part.name)) for part in one.sources))
        for one in weights
    )
    _check(named, checkpoint.shapes, family, architecture)
    if quantization is not None:
        named = _quantized(named, checkpoint, architecture, quantization)
    ropes = tuple(
        Weight(f"rope.{index}.inv_freq", tuple(one.inv_freq.shape), DType.FLOAT32, value=one.inv_freq)
        for index, one in enumerate(decoder.frequencies)
    )
    return named + ropes


def with_vocab_size(weights: Iterable[Weight], vocab_size: int) -> tuple[Weight, ...]:
    """The same weights for token ids below `vocab_size`: rows beyond it are left out, those that lack are zeros."""
    return tuple(
        replace(weight, shape=(vocab_size, *weight.shape[1:]), num_rows=vocab_size)
        if weight.name in ("embed.weight", "lm_head.weight")
        else weight
        for weight in weights
    )


def _outer_weights(architecture: Architecture, dtype: DType, offset: float) -> Iterator[Weight]:
    table = (architecture.vocab_size, architecture.hidden_size)
    norm = (architecture.hidden_size,)
    yield Weight("embed.weight", table, dtype, (Source("model.embed_tokens.weight", table),))
    yield Weight("norm.weight", norm, DType.FLOAT32, (Source("model.norm.weight", norm),), offset)
    if not architecture.tie_embeddings:
        yield Weight("lm_head.weight", table, dtype, (Source("lm_head.weight", table),))


def _layer_weights(
    architecture: Architecture, family: Family, layer: Layer, index: int, dtype: DType, offset: float
) -> Iterator[Weight]:
    source, target = f"model.layers.{index}.", f"layers.{index}."
    for name, length in _norms(architecture).items():
        sources = (Source(f"{source}{family.sources[name][0]}.weight", (length,)),)
        yield Weight(f"{target}{name}.weight", (length,), DType.FLOAT32, sources, offset)
    for name, linear in _linears(architecture, layer).items():
        rows = linear.rows if len(family.sources[name]) == len(linear.rows) else (sum(linear.rows),)
        copies = 1 if linear.copies is None else linear.copies
        stacked = [
            (source + pattern.format(e=copy), count)
            for copy in range(copies)
            for pattern, count in zip(family.sources[name], rows, strict=True)
        ]
        shape = (sum(linear.rows), linear.in_features)
        yield Weight(
            f"{target}{name}.weight",
            shape if linear.copies is None else (copies, *shape),
            dtype,
            tuple(Source(f"{stem}.weight", (count, linear.in_features)) for stem, count in stacked),
        )
        if linear.has_bias:
            biases = tuple(Source(f"{stem}.bias", (count,)) for stem, count in stacked)
            yield Weight(f"{target}{name}.bias", shape[:1], dtype, biases)


def _norms(architecture: Architecture) -> dict[str, int]:
    norms = {"attn_norm": architecture.hidden_size, "mlp_norm": architecture.hidden_size}
    if architecture.qk_norm:
        norms |= {"q_norm": architecture.head_dim, "k_norm": architecture.head_dim}
    if architecture.post_norms:
        norms |= {"post_attn_norm": architecture.hidden_size, "post_mlp_norm": architecture.hidden_size}
    return norms


def _linears(architecture: Architecture, layer: Layer) -> dict[str, _Linear]:
    hidden, head_dim = architecture.hidden_size, architecture.head_dim
    q_rows, kv_rows = architecture.num_heads * head_dim, architecture.num_kv_heads * head_dim
    linears = {
        "qkv": _Linear((q_rows, kv_rows, kv_rows), hidden, architecture.qkv_bias),
        "o": _Linear((hidden,), q_rows, architecture.o_bias),
    }
    if layer.is_moe:
        assert architecture.moe is not None
        experts, inner = architecture.moe.num_experts, architecture.moe.intermediate_size
        return linears | {
            "router": _Linear((experts,), hidden),
            "experts.gate_up": _Linear((inner, inner), hidden, copies=experts),
            "experts.down": _Linear((hidden,), inner, copies=experts),
        }
    inner = architecture.intermediate_size
    return linears | {
        "gate_up": _Linear((inner, inner), hidden, architecture.mlp_bias),
        "down": _Linear((hidden,), inner, architecture.mlp_bias),
    }


def _quantized(
    weights: tuple[Weight, ...], checkpoint: Checkpoint, architecture: Architecture, quantization: WeightType
) -> tuple[Weight, ...]:
    chosen = tuple(
        replace(weight, bits=_bits(weight, checkpoint, quantization))
        if architecture.may_quantize(weight.name)
        else weight
        for weight in weights
    )
    if all(weight.bits is None for weight in chosen):
        raise ConfigError(
            f"quantization is {quantization.value!r}: the checkpoint has no matrix in Q8_0, Q4_0 or Q4_1; "
            "ask for int8 or int4, or take such a GGUF"
        )
    for weight in chosen:
        if weight.bits is not None and weight.shape[-1] % GROUP_SIZE:
            raise ConfigError(
                f"quantization is {quantization.value!r}: {weight.sources[0].name.removesuffix('.weight')} has "
                f"{weight.shape[-1]} inputs, not a multiple of {GROUP_SIZE}; leave the model unquantised"
            )
    return chosen


def _bits(weight: Weight, checkpoint: Checkpoint, quantization: WeightType) -> int | None:
    """Of a matrix that may be quantised. The one of the logits, which look-ups may read too, is too sensitive for int4."""
    if quantization is WeightType.SOURCE:
        stored = {checkpoint.code_bits.get(source.name) for source in weight.sources}
        return stored.pop() if len(stored) == 1 else None
    is_int4 = quantization is WeightType.INT4 and weight.name not in ("embed.weight", "lm_head.weight")
    return 4 if is_int4 else 8


def _spelling(names: Iterable[str], family: Family) -> dict[str, str]:
    """Common name -> the checkpoint's own, where a family's checkpoints spell it otherwise."""
    spelling = {}
    for name in names:
        for pattern, replacement in family.renames:
            common, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                spelling[common] = name
                break
    return spelling


def _check(
    weights: tuple[Weight, ...],
    shapes: Mapping[str, tuple[int, ...]],
    family: Family,
    architecture: Architecture,
) -> None:
    wanted = {source.name: source.shape for weight in weights for source in weight.sources}
    missing = sorted(wanted.keys() - shapes.keys())
    if missing:
        raise CheckpointError(f"the checkpoint lacks {_listed(missing)}; download it again")
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise CheckpointError(
                f"{name} has shape {shapes[name]}, but config.json says {shape}; download the checkpoint again"
            )
    ignorable = (*IGNORABLE, *family.ignorable, *((r"(.*\.)?lm_head\.weight",) if architecture.tie_embeddings else ()))
    extra = sorted(
        name for name in shapes.keys() - wanted.keys() if not any(re.fullmatch(one, name) for one in ignorable)
    )
    if extra:
        raise CheckpointError(
            f"the checkpoint has {_listed(extra)}, which {architecture.family} does not use; "
            "merge adapters into the checkpoint, or take one that is only this model"
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
