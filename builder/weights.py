"""Where each engine weight comes from: the stacked rows of one or more checkpoint tensors, checked before any is read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from math import gcd

from trierarch.builder.architectures import IGNORABLE, Family
from trierarch.builder.checkpoint import Checkpoint
from trierarch.builder.codes import CodeType
from trierarch.builder.decoder import Decoder
from trierarch.builder.errors import CheckpointError, ConfigError
from trierarch.builder.manifest import GROUP_SIZE, Architecture, DType, Layer, WeightType
from trierarch.builder.weight import CODE_BITS, Source, Weight


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
    offset = 0.0 if checkpoint.has_folded_norms else family.norm_offset
    weights = [
        *_outer_weights(architecture, dtype, offset),
        *(
            weight
            for index, layer in enumerate(architecture.layers)
            for weight in layer_weights(architecture, family, index, f"model.layers.{index}.", dtype, offset=offset)
        ),
    ]
    named = matched(weights, checkpoint.shapes, family, architecture, checkpoint.needless)
    if quantization is not None:
        named = _quantized(named, checkpoint, architecture, quantization)
    return named + rope_weights(decoder)


def matched(
    weights: Iterable[Weight],
    shapes: Mapping[str, tuple[int, ...]],
    family: Family,
    architecture: Architecture,
    needless: Collection[str] = (),
) -> tuple[Weight, ...]:
    """`weights` with sources by the names that `shapes`, a checkpoint's, has for them: each is there, and none left over
    but `needless` ones.

    Raises:
        CheckpointError: tensors are missing, misshapen, or nobody's.
    """
    spelling = spelling_of(shapes, family)
    named = tuple(
        replace(one, sources=tuple(replace(part, name=spelling.get(part.name, part.name)) for part in one.sources))
        for one in weights
    )
    _check(named, shapes, family, architecture, needless)
    return named


def rope_weights(decoder: Decoder) -> tuple[Weight, ...]:
    """The frequencies, which follow from the configuration."""
    return tuple(
        Weight(f"rope.{index}.inv_freq", tuple(one.inv_freq.shape), DType.FLOAT32, value=one.inv_freq)
        for index, one in enumerate(decoder.frequencies)
    )


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


def layer_weights(
    architecture: Architecture,
    family: Family,
    index: int,
    source: str,
    dtype: DType,
    *,
    offset: float = 0.0,
    qkv_inputs: int | None = None,
) -> Iterator[Weight]:
    """Those of layer `index`, whose tensors' names begin with `source`; qkv maps from the hidden size unless said."""
    layer, target = architecture.layers[index], f"layers.{index}."
    for name, length in _norms(architecture).items():
        sources = (Source(f"{source}{family.sources[name][0]}.weight", (length,)),)
        yield Weight(f"{target}{name}.weight", (length,), DType.FLOAT32, sources, offset)
    for name, linear in _linears(architecture, layer, qkv_inputs or architecture.hidden_size).items():
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


def _linears(architecture: Architecture, layer: Layer, qkv_inputs: int) -> dict[str, _Linear]:
    hidden, head_dim = architecture.hidden_size, architecture.head_dim
    q_rows, kv_rows = architecture.num_heads * head_dim, architecture.num_kv_heads * head_dim
    linears = {
        "qkv": _Linear((q_rows, kv_rows, kv_rows), qkv_inputs, architecture.qkv_bias),
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
        _with_codes(weight, _code_type(weight, checkpoint, quantization))
        if architecture.may_quantize(weight.name)
        else weight
        for weight in weights
    )
    if all(weight.codes is None for weight in chosen):
        raise ConfigError(
            f"quantization is {quantization.value!r}: the checkpoint has no matrix in Q8_0, Q4_0, Q4_1, FP8, GPTQ or AWQ; "
            "ask for int8 or int4, or take such a checkpoint"
        )
    for weight in chosen:
        if weight.codes in CODE_BITS and weight.shape[-1] % GROUP_SIZE:
            raise ConfigError(
                f"quantization is {quantization.value!r}: {weight.sources[0].name.removesuffix('.weight')} has "
                f"{weight.shape[-1]} inputs, not a multiple of {GROUP_SIZE}; leave the model unquantised"
            )
    return _in_common_blocks(chosen)


def _with_codes(weight: Weight, kind: CodeType | None) -> Weight:
    return weight if kind is None else replace(weight, codes=kind.weights, block=kind.block)


def _code_type(weight: Weight, checkpoint: Checkpoint, quantization: WeightType) -> CodeType | None:
    """Of a matrix that may be quantised. The one of the logits is too sensitive for int4, and for one fp8 scale a row."""
    types = {checkpoint.code_types.get(source.name) for source in weight.sources}
    stored = types.pop() if len(types) == 1 else None
    is_fp8 = stored is not None and stored.weights is WeightType.FP8
    if quantization is WeightType.SOURCE or (quantization is WeightType.FP8 and is_fp8):
        return stored
    if weight.name not in ("embed.weight", "lm_head.weight"):
        return CodeType(quantization)
    return None if quantization is WeightType.FP8 else CodeType(WeightType.INT8)


def _in_common_blocks(weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
    """The weights with fp8 blocks of one size, none of which reaches across the sources that a matrix stacks."""
    blocks = {weight.block for weight in weights if weight.block is not None}
    if not blocks:
        return weights
    (block,) = blocks  # a checkpoint has one size
    rows = gcd(block[0], *(row for weight in weights if weight.block for row in _seams(weight)))
    return tuple(replace(weight, block=(rows, block[1])) if weight.block else weight for weight in weights)


def _seams(weight: Weight) -> Iterator[int]:
    """Rows of a matrix, or of any expert's, that a source after the first begins at."""
    *_, num_rows, _ = weight.shape
    ends = accumulate(source.shape[0] for source in weight.sources)
    yield from (end % num_rows for end in ends)


def spelling_of(names: Iterable[str], family: Family) -> dict[str, str]:
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
    needless: Collection[str],
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
        name
        for name in shapes.keys() - wanted.keys() - set(needless)
        if not any(re.fullmatch(one, name) for one in ignorable)
    )
    if extra:
        raise CheckpointError(
            f"the checkpoint has {_listed(extra)}, which {architecture.family} does not use; "
            "merge adapters into the checkpoint, or take one that is only this model"
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
