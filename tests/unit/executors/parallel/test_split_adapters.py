"""Adapters on a split model, and matrices of codes: what a rank has of them gives together what the whole gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.packed_adapters import random_packed, taking_adapters
from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_weights
from support.threaded_ranks import CPU, ThreadedRanks, split
from trierarch.builder.adapter import LAYER_PIECES, AdapterTensors
from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.parallel.shard import Axis, Cut, shards
from trierarch.python_backend.executors.parallel.sharded_weights import taken
from trierarch.python_backend.executors.runner import Runner
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix
from trierarch.python_backend.executors.torch.runner import TorchRunner
from trierarch.python_backend.request import Request, SamplingParams
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5]
ADAPTERS: dict[str, dict[str, Any]] = {
    "every layer's pieces": {},
    "DoRA": {"is_dora": True},
    "embeddings and logits by pieces": {"pieces": (*LAYER_PIECES, "embed", "lm_head")},
    "embeddings and logits whole": {"whole": ("embed", "lm_head")},
}


def prompt_logits(runner: Runner, tensors: AdapterTensors | None) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(len(PROMPT), vocab)."""
    adapter = None if tensors is None else ActiveAdapter(tensors.manifest.digest, 1, runner.arrange(tensors))
    sampling = SamplingParams(max_tokens=1, temperature=0.0, return_context_logits=True)
    request = Request(request_id="0", prompt_token_ids=tuple(PROMPT), sampling=sampling, arrival_time=0.0)
    sequence = Sequence(0, request, 0, list(PROMPT), block_table=[2, 0, 1], adapter=adapter)
    output = runner.run(Plan((ScheduledSequence(sequence, 0, len(PROMPT), samples=True),))).outputs[0]
    return np.stack(output.context_logits)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineManifest]:
    folder = tmp_path_factory.mktemp("engine")
    architecture = tiny_architecture(vocab_size=51, qkv_bias=True, o_bias=True, mlp_bias=True)
    write_weights(folder, random_weights(architecture))
    return folder, taking_adapters(tiny_manifest(architecture), folder)


@pytest.mark.parametrize("places, stages", [(2, 1), (4, 1), (1, 2)])
@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_does_what_it_does_to_the_whole(
    engine: tuple[Path, EngineManifest], options: dict[str, Any], places: int, stages: int
) -> None:
    folder, manifest = engine
    tensors = random_packed(manifest, **options)
    alone = TorchRunner(folder, manifest, CPU)
    ranks = ThreadedRanks(folder, split(manifest, places, stages))
    plain = prompt_logits(alone, None)
    adapted = prompt_logits(alone, tensors)
    assert np.abs(adapted - plain).max() > 0.1
    np.testing.assert_allclose(prompt_logits(ranks, tensors), adapted, atol=2e-5)
    np.testing.assert_allclose(prompt_logits(ranks, None), plain, atol=2e-5)
    ranks.close()


def random_codes(bits: int, *rows: int, num_inputs: int) -> QuantizedMatrix:
    generator = torch.Generator().manual_seed(bits)
    scales = torch.randn((*rows, num_inputs // 32), generator=generator).half()
    if bits == 8:
        codes = torch.randint(-128, 128, (*rows, num_inputs), generator=generator).to(torch.int8)
        return QuantizedMatrix(codes, scales, None)
    codes = torch.randint(256, (*rows, num_inputs // 2), generator=generator).to(torch.uint8)
    return QuantizedMatrix(codes, scales, torch.randn(scales.shape, generator=generator).half())


@pytest.mark.parametrize("rows", [(6,), (3, 6)], ids=["a matrix", "experts"])
@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_cut_as_their_elements(bits: int, rows: tuple[int, ...]) -> None:
    matrix = random_codes(bits, *rows, num_inputs=128)
    elements = matrix.dequantize(torch.float32)
    by_inputs = taken(matrix, Cut(Axis.INPUTS, ((32, 96),)), "down")
    by_outputs = taken(matrix, Cut(Axis.OUTPUTS, ((0, 2), (3, 5))), "gate_up")
    assert isinstance(by_inputs, QuantizedMatrix)
    assert isinstance(by_outputs, QuantizedMatrix)
    assert torch.equal(by_inputs.dequantize(torch.float32), elements[..., 32:96])
    assert torch.equal(by_outputs.dequantize(torch.float32), elements[..., [0, 1, 3, 4], :])


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_not_cut_within_a_group(bits: int) -> None:
    matrix = random_codes(bits, 6, num_inputs=96)
    message = (
        r"layers.0.down.weight is quantised in groups of 32 inputs, and a rank's share is 48: build with a smaller"
    )
    with pytest.raises(EngineError, match=message):
        taken(matrix, Cut(Axis.INPUTS, ((0, 48),)), "layers.0.down.weight")


@pytest.mark.parametrize("places, stages", [(1, 1), (2, 1), (4, 2), (8, 1)])
def test_each_weight_is_whole_over_the_ranks(places: int, stages: int) -> None:
    """But for heads of keys and values, which ranks may share."""
    architecture = tiny_architecture(num_heads=8, num_kv_heads=4, head_dim=2)
    own = shards(split(tiny_manifest(architecture), places, stages))
    assert [one.rank.index for one in own] == list(range(places * stages))
    for rows, name in ((8 * 2, "layers.0.o.weight"), (48, "layers.0.down.weight"), (2 * 48, "layers.0.gate_up.bias")):
        cuts = [one.cut(name) for one in own[:places]]
        taken_rows = [row for cut in cuts if cut is not None for begin, end in cut.spans for row in range(begin, end)]
        assert sorted(taken_rows) == list(range(rows))
    heads: list[int] = []
    for one in own[:places]:
        cut = one.cut("layers.0.qkv.weight")
        assert cut is not None
        queries, keys, values = cut.spans
        assert (values[0] - keys[0], values[1] - keys[1]) == (8, 8)
        group = range(queries[0] // 2, queries[1] // 2)
        heads += group
        assert {head // 2 for head in group} == set(range((keys[0] - 16) // 2, (keys[1] - 16) // 2))
    assert heads == list(range(8))
    logits = [row for one in own for row in range(*one.logits)]
    assert logits == list(range(50))
