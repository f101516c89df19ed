"""A decoder on random sequences whose blocks lie in disorder, computed eagerly and by the kernels."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from support.random_engine import random_weights
from trierarch.builder.adapter import AdapterTensors, to_floats
from trierarch.builder.manifest import GROUP_SIZE, Activation, Architecture, DType, KvCache, KvType, Layer, Rope
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.cpu import kv_arrays as cpu_kv_arrays
from trierarch.python_backend.executors.cpu.decoder import CompiledDecoder
from trierarch.python_backend.executors.cpu.paged_batch import PagedBatch
from trierarch.python_backend.executors.cpu.weights import Weight
from trierarch.python_backend.executors.torch.adapter import TorchAdapter
from trierarch.python_backend.executors.torch.attention import EagerAttention
from trierarch.python_backend.executors.torch.attention_tile import BlockShape
from trierarch.python_backend.executors.torch.input_batch import InputBatch
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters
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
    adapters: Mapping[int, AdapterTensors] = field(default_factory=dict)
    """Sequence -> its adapter; others are the base model's."""
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


def activate(case: Case, arranged: Mapping[int, Any]) -> None:
    """Give sequences their adapters, as one of the decoders wants them; one adapter is one slot."""
    slots: dict[str, int] = {}
    for index, sequence in enumerate(case.sequences):
        sequence.adapter = None
        if index in arranged:
            digest = case.adapters[index].manifest.digest
            slot = slots.setdefault(digest, len(slots) + 1)
            sequence.adapter = ActiveAdapter(digest, slot, arranged[index])


def arranged_once(case: Case, arrange: Callable[[AdapterTensors], Any]) -> dict[int, Any]:
    """Sequence -> its adapter laid out; sequences of one adapter share it."""
    by_digest = {tensors.manifest.digest: tensors for tensors in case.adapters.values()}
    laid_out = {digest: arrange(tensors) for digest, tensors in by_digest.items()}
    return {index: laid_out[tensors.manifest.digest] for index, tensors in case.adapters.items()}


def in_dtype(tensors: AdapterTensors, dtype: DType) -> AdapterTensors:
    """The same numbers in float32, if that is asked for."""
    if dtype is not DType.FLOAT32:
        return tensors
    return replace(tensors, arrays={name: to_floats(array) for name, array in tensors.arrays.items()})


@torch.inference_mode()
def eager_logits(case: Case, dtype: DType | None = None) -> torch.Tensor:
    """(sum of LENGTHS, vocab), each sequence in one piece; `dtype` computes the same weights in another type."""
    architecture = case.architecture
    computed = TORCH_DTYPES[dtype or case.dtype]
    weights = {name: plain(one, computed) if dtype or is_quantized(one) else one for name, one in case.weights.items()}
    kv = KvArrays(NUM_BLOCKS, architecture, case.kv_cache(dtype), CPU)
    model = Decoder(architecture, weights, computed, LoopedAdapters())
    shape = BlockShape(BLOCK_SIZE, architecture.num_kv_heads, kv.padding_block)
    windows = {layer.window for layer in architecture.layers}
    activate(case, arranged_once(case, lambda one: TorchAdapter(architecture, in_dtype(one, dtype or case.dtype), CPU)))
    logits = []
    for plan in case.plans(None):
        for item in plan.scheduled:
            batch = InputBatch.build(Plan((item,)), windows, shape, computed, CPU, EagerAttention())
            hidden = model.hidden(batch, kv)
            logits.append(model.logits(hidden, [item.sequence.adapter] * len(hidden)))
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
    activate(case, arranged_once(case, model.arrange))
    rows: list[list[torch.Tensor]] = [[] for _ in LENGTHS]
    for plan in case.plans(seed):
        batch = PagedBatch.build(plan, BLOCK_SIZE)
        hidden = model.hidden(batch, kv)
        for item, first_row in zip(batch.items, batch.first_rows, strict=True):
            states = hidden[first_row : first_row + item.num_tokens]
            logits = model.logits(states, [item.sequence.adapter] * len(states))
            rows[item.sequence.sequence_id].append(torch.from_numpy(logits))
    return torch.cat([piece for pieces in rows for piece in pieces])


def relative_errors(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return (logits - reference).norm(dim=1) / reference.norm(dim=1)
