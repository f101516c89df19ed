"""The compiled decoder against the eager one, on ragged batches of random sequences, for every flag a family sets."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.compiled_case import (
    BLOCK_SIZE,
    CPU,
    FLAGS,
    HEADS,
    NUM_BLOCKS,
    QUANTIZED_FLAGS,
    Case,
    arrays,
    compiled_logits,
    eager_logits,
    plain,
    relative_errors,
)
from support.random_engine import tiny_architecture
from trierarch.builder.manifest import DType, KvType
from trierarch.python_backend.executors.cpu import kv_arrays as cpu_kv_arrays
from trierarch.python_backend.executors.cpu.abi import open_library
from trierarch.python_backend.executors.cpu.decoder import CompiledDecoder
from trierarch.python_backend.executors.cpu.paged_batch import PagedBatch
from trierarch.python_backend.executors.torch.attention import EagerAttention
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters
from trierarch.python_backend.executors.torch.model import Decoder
from trierarch.python_backend.scheduling.plan import Plan


@pytest.mark.parametrize("flags", [FLAGS["windows"], FLAGS["gemma"]], ids=["windows", "gemma"])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
@torch.inference_mode()
def test_hidden_states_are_tapped_between_layers(library: ctypes.CDLL, dtype: DType, flags: dict[str, Any]) -> None:
    """After some layers and the last; nothing else changes by it, and nothing is written that nobody asked for."""
    case = Case(tiny_architecture(**HEADS | flags), dtype)
    architecture, num_layers = case.architecture, case.architecture.num_layers
    taps = (1, num_layers)
    weights = {name: arrays(weight) for name, weight in case.weights.items()}
    settings = (library, architecture, dtype, case.kv_cache().dtype, weights, 2)
    tapping, plain_one = CompiledDecoder(*settings, taps=taps), CompiledDecoder(*settings)
    (plan,) = case.plans(None)
    batch = PagedBatch.build(plan, BLOCK_SIZE)
    tapped = np.full((batch.num_tokens, len(taps) * architecture.hidden_size), np.nan, dtype=np.float32)
    kv = cpu_kv_arrays.KvArrays(NUM_BLOCKS, architecture, case.kv_cache())
    hidden = tapping.hidden(batch, kv, tapped)
    for decoder in (tapping, plain_one):
        assert np.array_equal(decoder.hidden(batch, kv), hidden)
    first, last = np.split(tapped, len(taps), axis=1)
    assert np.array_equal(last, hidden)
    eager = Decoder(
        architecture,
        {name: plain(one, torch.float32) for name, one in case.weights.items()},
        torch.float32,
        LoopedAdapters(),
    )
    eager_kv = KvArrays(NUM_BLOCKS, architecture, case.kv_cache(DType.FLOAT32), CPU)
    shape = BlockShape(BLOCK_SIZE, architecture.num_kv_heads, eager_kv.padding_block)
    windows = {layer.window for layer in architecture.layers}
    for item, first_row in zip(batch.items, batch.first_rows, strict=True):
        eager_batch = InputBatch.build(Plan((item,)), windows, shape, torch.float32, CPU, EagerAttention())
        (expected,) = eager.hidden_after(eager_batch, eager_kv, (1,))
        found = torch.from_numpy(first[first_row : first_row + item.num_tokens])
        assert relative_errors(found, expected).max() < (1e-4 if dtype is DType.FLOAT32 else 0.05)


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_float32_equals_the_eager_decoder(library: ctypes.CDLL, flags: dict[str, Any]) -> None:
    case = Case(tiny_architecture(**HEADS | flags), DType.FLOAT32)
    logits = compiled_logits(library, case, seed=11)
    assert relative_errors(logits, eager_logits(case)).max() < 1e-4
    assert logits.std(dim=1).min() > 0.1  # a uniform answer would be near anything


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_bfloat16_is_no_further_from_float32_than_the_eager_decoder(
    library: ctypes.CDLL, flags: dict[str, Any]
) -> None:
    case = Case(tiny_architecture(**HEADS | flags), DType.BFLOAT16)
    exact = eager_logits(case, DType.FLOAT32)
    ours = relative_errors(compiled_logits(library, case, seed=11), exact)
    eager = relative_errors(eager_logits(case), exact)
    assert ours.mean() < 1.1 * eager.mean()
    assert ours.max() < 1.5 * eager.max()


@pytest.mark.parametrize("kv_dtype", [None, KvType.INT8])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
@pytest.mark.parametrize("flags", ["plain", "windows", "gemma"])
def test_no_bit_depends_on_batch_chunks_or_threads(
    library: ctypes.CDLL, flags: str, dtype: DType, kv_dtype: KvType | None
) -> None:
    case = Case(tiny_architecture(**HEADS | FLAGS[flags]), dtype, kv_dtype=kv_dtype)
    whole = compiled_logits(library, case, seed=None)
    assert torch.equal(compiled_logits(library, case, seed=1), whole)
    assert torch.equal(compiled_logits(library, case, seed=2, num_threads=1), whole)


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_int8_kv_in_float32_equals_the_eager_decoder(library: ctypes.CDLL, flags: dict[str, Any]) -> None:
    """But for the few elements that lie halfway between two codes, which rounding before may tip over."""
    case = Case(tiny_architecture(**HEADS | flags), DType.FLOAT32, kv_dtype=KvType.INT8)
    eager = eager_logits(case)
    errors = relative_errors(compiled_logits(library, case, seed=11), eager)
    assert errors.median() < 1e-4
    assert errors.max() < 2e-2
    unquantised = relative_errors(eager_logits(Case(case.architecture, DType.FLOAT32)), eager)
    assert errors.mean() < 0.2 * unquantised.mean()


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_int8_kv_in_bfloat16_is_no_further_from_float32_than_the_eager_decoder(
    library: ctypes.CDLL, flags: dict[str, Any]
) -> None:
    case = Case(tiny_architecture(**HEADS | flags), DType.BFLOAT16, kv_dtype=KvType.INT8)
    exact = eager_logits(Case(case.architecture, DType.BFLOAT16), DType.FLOAT32)
    ours = relative_errors(compiled_logits(library, case, seed=11), exact)
    eager = relative_errors(eager_logits(case), exact)
    assert ours.mean() < 1.1 * eager.mean()
    assert ours.max() < 1.5 * eager.max()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("flags", QUANTIZED_FLAGS.values(), ids=QUANTIZED_FLAGS)
def test_quantised_float32_equals_the_eager_decoder_on_the_same_elements(
    library: ctypes.CDLL, flags: dict[str, Any], bits: int
) -> None:
    case = Case(tiny_architecture(**HEADS | flags), DType.FLOAT32, bits)
    logits = compiled_logits(library, case, seed=11)
    assert relative_errors(logits, eager_logits(case)).max() < 1e-4
    assert logits.std(dim=1).min() > 0.1


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("flags", QUANTIZED_FLAGS.values(), ids=QUANTIZED_FLAGS)
def test_quantised_bfloat16_is_no_further_from_float32_than_the_eager_decoder(
    library: ctypes.CDLL, flags: dict[str, Any], bits: int
) -> None:
    case = Case(tiny_architecture(**HEADS | flags), DType.BFLOAT16, bits)
    exact = eager_logits(case, DType.FLOAT32)
    ours = relative_errors(compiled_logits(library, case, seed=11), exact)
    eager = relative_errors(eager_logits(case), exact)
    assert ours.mean() < 1.1 * eager.mean()
    assert ours.max() < 1.5 * eager.max()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_no_bit_of_a_quantised_decoder_depends_on_batch_chunks_or_threads(
    library: ctypes.CDLL, dtype: DType, bits: int
) -> None:
    case = Case(tiny_architecture(**HEADS | QUANTIZED_FLAGS["long"]), dtype, bits)
    whole = compiled_logits(library, case, seed=None)
    assert torch.equal(compiled_logits(library, case, seed=1), whole)
    assert torch.equal(compiled_logits(library, case, seed=2, num_threads=1), whole)


def test_a_library_of_another_interface_is_refused(tmp_path: Path) -> None:
    from trierarch.builder.errors import EngineError

    path = tmp_path / "kernels.so"
    path.write_bytes(b"not a library")
    with pytest.raises(EngineError, match=r"kernels.so cannot be loaded .*rebuild the engine with: trierarch build"):
        open_library(path)
