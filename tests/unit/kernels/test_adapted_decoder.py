"""Adapters in the compiled decoder against the eager one, and the eager one against merged weights."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from support.compiled_case import (
    FLAGS,
    HEADS,
    LENGTHS,
    QUANTIZED_FLAGS,
    Case,
    compiled_logits,
    eager_logits,
    relative_errors,
)
from support.packed_adapters import random_packed, taking_adapters
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.adapter import PIECES, STACKED, AdapterTensors, piece_shape, to_floats
from trierarch.builder.manifest import Architecture, DType


def mixed(architecture: Architecture, dtype: DType) -> dict[int, AdapterTensors]:
    """Sequences of four adapters of different kinds, two of them on the same one, and one of the base model."""
    engine = taking_adapters(tiny_manifest(architecture, dtype))
    attention = random_packed(engine, rank=3, seed=1, pieces=("q", "v", "o"))
    everything = random_packed(engine, rank=8, seed=2, pieces=PIECES)
    dora = random_packed(engine, rank=1, seed=3, pieces=("q", "k", "gate", "down", "lm_head"), is_dora=True)
    whole = random_packed(engine, rank=5, seed=4, pieces=("up",), whole=("lm_head", "embed"))
    return dict(enumerate((everything, dora, everything, attention, whole)))


def merged(case: Case, tensors: AdapterTensors) -> Case:
    """The same without adapters: what `tensors` does is in the weights. Of an untied, unquantised model of float32."""
    result = Case(case.architecture, case.dtype)
    arrays = {name: torch.from_numpy(to_floats(array)) for name, array in tensors.arrays.items()}
    prefixes = ("", *(f"layers.{index}." for index in range(case.architecture.num_layers)))
    for prefix in prefixes:
        for stacked, pieces in STACKED.items():
            first = 0
            for piece in pieces:
                out_features, _ = piece_shape(case.architecture, piece)
                end, name = first + out_features, prefix + piece
                if f"{name}.a" in arrays:
                    weight = result.weights[f"{prefix}{stacked}.weight"]
                    assert isinstance(weight, torch.Tensor)
                    gain = arrays.get(f"{name}.gain", torch.ones(out_features))
                    weight[first:end] = gain[:, None] * weight[first:end] + arrays[f"{name}.b"] @ arrays[f"{name}.a"]
                first = end
    for table in ("embed", "lm_head"):
        if f"{table}.weight" in arrays:
            result.weights[f"{table}.weight"] = arrays[f"{table}.weight"]
    if "embed.a" in arrays:
        embedding = result.weights["embed.weight"]
        assert isinstance(embedding, torch.Tensor)
        result.weights["embed.weight"] = embedding + arrays["embed.a"] @ arrays["embed.b"].T
    return result


@pytest.mark.parametrize("flags", ["untied", "biases", "gemma", "wide"])
def test_the_eager_decoder_computes_what_merged_weights_do(flags: str) -> None:
    architecture = tiny_architecture(**HEADS | FLAGS[flags] | {"tie_embeddings": False})
    for index, tensors in mixed(architecture, DType.FLOAT32).items():
        case = Case(architecture, DType.FLOAT32, adapters={index: tensors for index in range(len(LENGTHS))})
        logits = eager_logits(case)
        assert relative_errors(logits, eager_logits(merged(case, tensors))).max() < 1e-4, index
        assert relative_errors(logits, eager_logits(Case(architecture, DType.FLOAT32))).min() > 0.05, index


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_mixed_adapters_in_float32_equal_the_eager_decoder(library: ctypes.CDLL, flags: dict[str, Any]) -> None:
    architecture = tiny_architecture(**HEADS | flags)
    case = Case(architecture, DType.FLOAT32, adapters=mixed(architecture, DType.FLOAT32))
    assert relative_errors(compiled_logits(library, case, seed=11), eager_logits(case)).max() < 1e-4


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_mixed_adapters_in_bfloat16_are_no_further_from_float32_than_the_eager_decoder(
    library: ctypes.CDLL, flags: dict[str, Any]
) -> None:
    architecture = tiny_architecture(**HEADS | flags)
    case = Case(architecture, DType.BFLOAT16, adapters=mixed(architecture, DType.BFLOAT16))
    exact = eager_logits(case, DType.FLOAT32)
    ours = relative_errors(compiled_logits(library, case, seed=11), exact)
    eager = relative_errors(eager_logits(case), exact)
    assert ours.mean() < 1.1 * eager.mean()
    assert ours.max() < 1.5 * eager.max()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("flags", QUANTIZED_FLAGS.values(), ids=QUANTIZED_FLAGS)
def test_mixed_adapters_on_quantised_matrices_equal_the_eager_decoder(
    library: ctypes.CDLL, flags: dict[str, Any], bits: int
) -> None:
    architecture = tiny_architecture(**HEADS | flags)
    case = Case(architecture, DType.FLOAT32, bits, adapters=mixed(architecture, DType.FLOAT32))
    assert relative_errors(compiled_logits(library, case, seed=11), eager_logits(case)).max() < 1e-4


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_no_bit_depends_on_what_other_adapters_are_in_the_step(
    library: ctypes.CDLL, dtype: DType, bits: int | None
) -> None:
    """Each sequence alone is the same as among the others, and one of the base model as if there were no adapters."""
    architecture = tiny_architecture(**HEADS | QUANTIZED_FLAGS["long"])
    adapters = mixed(architecture, dtype)
    together = compiled_logits(library, Case(architecture, dtype, bits, adapters=adapters), seed=1)
    again = compiled_logits(library, Case(architecture, dtype, bits, adapters=adapters), seed=2, num_threads=1)
    assert torch.equal(together, again)
    base = compiled_logits(library, Case(architecture, dtype, bits), seed=None).split(LENGTHS)
    for index, rows in enumerate(together.split(LENGTHS)):
        if index not in adapters:
            assert torch.equal(rows, base[index])
            continue
        alone = Case(architecture, dtype, bits, adapters={index: adapters[index]})
        assert torch.equal(rows, compiled_logits(library, alone, seed=None).split(LENGTHS)[index])
        assert not torch.equal(rows, base[index])
