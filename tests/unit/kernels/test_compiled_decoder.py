"""The compiled decoder against the eager one, on ragged batches of random sequences, for every flag a family sets."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.random_engine import random_weights, tiny_architecture
from trierarch.builder import compile as kernels
from trierarch.builder.manifest import GROUP_SIZE, Activation, Architecture, DType, KvCache, KvType, Layer, Rope
from trierarch.python_backend.executors.cpu import kv_arrays as cpu_kv_arrays
from trierarch.python_backend.executors.cpu.abi import open_library
from trierarch.python_backend.executors.cpu.decoder import CompiledDecoder
from trierarch.python_backend.executors.cpu.paged_batch import PagedBatch
from trierarch.python_backend.executors.cpu.weights import Weight
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.model import Decoder
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix
from trierarch.python_backend.executors.torch.weights import TORCH_DTYPES
from trierarch.python_backend.request import Request, SamplingParams
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence

CPU = torch.device("cpu")
BLOCK_SIZE = 32  # two tiles of the kernels
LENGTHS = (1, 7, 64, 65, 130, 300)  # of sequences; the last walks more than one segment of keys
NUM_BLOCKS = sum(-(-length // BLOCK_SIZE) for length in LENGTHS)

HEADS = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 16, "ropes": (Rope(rotary_dim=16),)}
FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide": {"hidden_size": 72, "intermediate_size": 202, "head_dim": 80, "ropes": (Rope(rotary_dim=80),)},
    "untied": {"tie_embeddings": False},
    "biases": {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    "windows": {"layers": (Layer(window=5), Layer(), Layer(window=70), Layer(window=299))},
    "ropes": {
        "ropes": (Rope(rotary_dim=12, attention_factor=1.3), Rope(rotary_dim=16)),
        "layers": (Layer(), Layer(rope=1), Layer(rope=None)),
    },
    "one kv head for each": {"num_kv_heads": 6, "qk_norm": True},
    "gemma": {
        "activation": Activation.GELU_TANH,
        "post_norms": True,
        "attention_softcap": 2.0,
        "logit_softcap": 3.0,
        "embedding_scale": 32**0.5,
    },
}


# What quantised matrices want: inputs of theirs that are multiples of 32.
QUANTIZED_FLAGS = {
    "plain": {"intermediate_size": 96},
    "long": {"hidden_size": 192, "intermediate_size": 672, "num_heads": 8},
    "untied": {"intermediate_size": 96, "tie_embeddings": False},
    "biases": {"intermediate_size": 96, **FLAGS["biases"]},
    "gemma": {"intermediate_size": 96, **FLAGS["gemma"]},
}


def instruction_sets() -> Iterator[kernels.InstructionSet]:
    """This machine's best, and the plainest: the same source without a vector unit of that width."""
    yield kernels.best_instruction_set()
    if kernels.best_instruction_set() is not kernels.INSTRUCTION_SETS[-1]:
        yield kernels.INSTRUCTION_SETS[-1]


@pytest.fixture(scope="session", params=instruction_sets(), ids=lambda one: one.name)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    if kernels.find_compiler() is None:
        pytest.skip("no C++ compiler")
    path.write_bytes(kernels.compile_library(request.param))
    return open_library(path)


def random_matrix(shape: tuple[int, int], bits: int) -> QuantizedMatrix:
    """Random codes; elements are about as large as `random_weights` makes them."""
    generator = torch.Generator().manual_seed(shape[0])
    groups = (shape[0], shape[1] // GROUP_SIZE)
    size = (0.5 + torch.rand(groups, generator=generator)) * shape[1] ** -0.5
    if bits == 8:
        codes = torch.randint(-128, 128, shape, generator=generator).to(torch.int8)
        return QuantizedMatrix(codes, (size / 64).half(), None)
    codes = torch.randint(0, 256, (shape[0], shape[1] // 2), generator=generator).to(torch.uint8)
    offsets = size / 4 * -8 * (0.8 + 0.4 * torch.rand(groups, generator=generator))
    return QuantizedMatrix(codes, (size / 4).half(), offsets.half())


def is_quantized(weight: torch.Tensor | QuantizedMatrix) -> bool:
    return isinstance(weight, QuantizedMatrix)


def plain(weight: torch.Tensor | QuantizedMatrix, dtype: torch.dtype) -> torch.Tensor:
    return weight.dequantize(dtype) if isinstance(weight, QuantizedMatrix) else weight.to(dtype)


@dataclass
class Case:
    """A model and some sequences whose blocks lie in disorder."""

    architecture: Architecture
    dtype: DType
    bits: int | None = None
    """Of the weights; None leaves them in `dtype`."""
    kv_dtype: KvType | None = None
    """None keeps them in the type that computes."""
    weights: dict[str, torch.Tensor | QuantizedMatrix] = field(init=False)
    sequences: list[Sequence] = field(init=False)

    def __post_init__(self) -> None:
        self.weights = dict(random_weights(self.architecture, self.dtype, seed=3))
        if self.bits is not None:
            for name, weight in self.weights.items():
                if len(weight.shape) == 2 and (name != "embed.weight" or self.architecture.tie_embeddings):
                    self.weights[name] = random_matrix(tuple(weight.shape), self.bits)
        chance = random.Random(5)
        blocks = chance.sample(range(NUM_BLOCKS), NUM_BLOCKS)
        self.sequences = []
        for index, length in enumerate(LENGTHS):
            tokens = [chance.randrange(self.architecture.vocab_size) for _ in range(length)]
            sampling = SamplingParams(max_tokens=1)
            request = Request(
                request_id=str(index), prompt_token_ids=tuple(tokens), sampling=sampling, arrival_time=0.0
            )
            table = [blocks.pop() for _ in range(-(-length // BLOCK_SIZE))]
            self.sequences.append(Sequence(index, request, 0, tokens, block_table=table))

    def kv_cache(self, computed: DType | None = None) -> KvCache:
        dtype = self.kv_dtype or KvType(computed or self.dtype)
        return KvCache(dtype=dtype, block_size=BLOCK_SIZE, bytes_per_token=1)

    def plans(self, seed: int | None) -> Iterator[Plan]:
        """Steps that compute everything: at once, or in random pieces of some of the sequences."""
        chance = random.Random(seed)
        done = [0] * len(self.sequences)
        while any(position < length for position, length in zip(done, LENGTHS, strict=True)):
            items = []
            for index, sequence in enumerate(self.sequences):
                left = LENGTHS[index] - done[index]
                count = left if seed is None else min(left, chance.choice((0, 1, 1, 2, 3, 17, 100)))
                if count:
                    items.append(ScheduledSequence(sequence, done[index], count))
                    done[index] += count
            if items:
                yield Plan(tuple(items))


@torch.inference_mode()
def eager_logits(case: Case, dtype: DType | None = None) -> torch.Tensor:
    """(sum of LENGTHS, vocab), each sequence in one piece; `dtype` computes the same weights in another type."""
    architecture = case.architecture
    computed = TORCH_DTYPES[dtype or case.dtype]
    weights = {name: plain(one, computed) if dtype or is_quantized(one) else one for name, one in case.weights.items()}
    kv = KvArrays(NUM_BLOCKS, architecture, case.kv_cache(dtype), CPU)
    model = Decoder(architecture, weights, computed)
    shape = BlockShape(BLOCK_SIZE, architecture.num_kv_heads, kv.padding_block)
    windows = {layer.window for layer in architecture.layers}
    logits = []
    for plan in case.plans(None):
        for item in plan.scheduled:
            batch = InputBatch.build(Plan((item,)), windows, shape, computed, CPU)
            logits.append(model.logits(model.hidden(batch, kv)))
    return torch.cat(logits)


def arrays(weight: torch.Tensor | QuantizedMatrix) -> Weight:
    """As the kernels' own loader maps it."""
    if isinstance(weight, QuantizedMatrix):
        parts = (weight.codes, weight.scales, weight.offsets)
        return Weight(*(part.numpy() for part in parts if part is not None))
    return Weight((weight.view(torch.uint16) if weight.dtype is torch.bfloat16 else weight).numpy())


def compiled_logits(library: ctypes.CDLL, case: Case, seed: int | None, num_threads: int = 2) -> torch.Tensor:
    """(sum of LENGTHS, vocab), computed as `case.plans(seed)` cuts it."""
    kv_cache = case.kv_cache()
    weights = {name: arrays(weight) for name, weight in case.weights.items()}
    model = CompiledDecoder(library, case.architecture, case.dtype, kv_cache.dtype, weights, num_threads)
    kv = cpu_kv_arrays.KvArrays(NUM_BLOCKS, case.architecture, kv_cache)
    # What was not written must not be read: these bits are NaN, in bfloat16 and the scales too.
    kv.array.view(np.uint8).fill(0xFF)
    if kv.scales is not None:
        kv.scales.fill(np.nan)
    rows: list[list[torch.Tensor]] = [[] for _ in LENGTHS]
    for plan in case.plans(seed):
        batch = PagedBatch.build(plan, BLOCK_SIZE)
        hidden = model.hidden(batch, kv)
        for item, first_row in zip(batch.items, batch.first_rows, strict=True):
            logits = model.logits(hidden[first_row : first_row + item.num_tokens])
            rows[item.sequence.sequence_id].append(torch.from_numpy(logits))
    return torch.cat([piece for pieces in rows for piece in pieces])


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
        architecture, {name: plain(one, torch.float32) for name, one in case.weights.items()}, torch.float32
    )
    eager_kv = KvArrays(NUM_BLOCKS, architecture, case.kv_cache(DType.FLOAT32), CPU)
    shape = BlockShape(BLOCK_SIZE, architecture.num_kv_heads, eager_kv.padding_block)
    windows = {layer.window for layer in architecture.layers}
    for item, first_row in zip(batch.items, batch.first_rows, strict=True):
        eager_batch = InputBatch.build(Plan((item,)), windows, shape, torch.float32, CPU)
        (expected,) = eager.hidden_after(eager_batch, eager_kv, (1,))
        found = torch.from_numpy(first[first_row : first_row + item.num_tokens])
        assert relative_errors(found, expected).max() < (1e-4 if dtype is DType.FLOAT32 else 0.05)


def relative_errors(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return (logits - reference).norm(dim=1) / reference.norm(dim=1)


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
