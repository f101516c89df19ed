"""A model split over ranks draws what the whole model draws, whatever the family and the split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_weights
from support.stepping import Stepper
from support.threaded_ranks import CPU, ThreadedRanks, split
from trierarch.builder.manifest import Activation, Architecture, DType, KvType, Layer, Moe, Quantization, WeightType
from trierarch.python_backend.executors.following import StepRows
from trierarch.python_backend.executors.torch.runner import TorchRunner
from trierarch.python_backend.scheduling.plan import SequenceOutput

MOE = Moe(num_experts=4, experts_per_token=2, intermediate_size=16, normalize_top_k=True)
FAMILIES: dict[str, dict[str, Any]] = {
    "grouped heads, tied embeddings, a window": {},
    "a head of lm_head's own, and a vocabulary that does not divide": {"tie_embeddings": False, "vocab_size": 53},
    "norms of heads and of outputs, biases": {
        "qk_norm": True,
        "post_norms": True,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
    },
    "softcaps": {
        "attention_softcap": 5.0,
        "logit_softcap": 10.0,
        "activation": Activation.GELU_TANH,
        "embedding_scale": 5.5,
    },
    "experts": {"layers": (Layer(is_moe=True), Layer(window=5, rope=None)), "moe": MOE},
    "a head for each query": {"num_kv_heads": 4},
}
SPLIT_FURTHER = ("a head of lm_head's own, and a vocabulary that does not divide", "experts")
SPLITS = {"2": (2, 1), "4, which share heads of keys": (4, 1), "2 stages": (1, 2), "2 stages of 2": (2, 2)}

PROMPTS = [
    torch.randint(50, (length,), generator=torch.Generator().manual_seed(length)).tolist() for length in (1, 5, 17, 40)
]


def engine_of(folder: Path, architecture: Architecture, dtype: DType = DType.FLOAT32) -> Path:
    folder.mkdir(exist_ok=True)
    write_weights(folder, random_weights(architecture, dtype))
    return folder


@pytest.mark.parametrize(
    "flags, places, stages",
    [
        pytest.param(flags, *split, id=f"{family} over {name}")
        for family, flags in FAMILIES.items()
        for name, split in SPLITS.items()
        if name == "2" or family in SPLIT_FURTHER
    ],
)
def test_draws_what_one_rank_draws(tmp_path: Path, flags: dict[str, Any], places: int, stages: int) -> None:
    architecture = tiny_architecture(**flags)
    manifest = tiny_manifest(architecture)
    engine = engine_of(tmp_path, architecture)
    alone = Stepper.open(manifest, TorchRunner(engine, manifest, CPU), max_num_tokens=23)
    ranks = ThreadedRanks(engine, split(manifest, places, stages))
    together = Stepper.open(manifest, ranks, max_num_tokens=23)
    assert together.generate(PROMPTS, max_tokens=8) == alone.generate(PROMPTS, max_tokens=8)
    ranks.close()


@pytest.mark.parametrize("places", [2, 4])
@pytest.mark.parametrize("family", SPLIT_FURTHER)
def test_blocks_of_fp8_are_cut_anywhere(tmp_path: Path, family: str, places: int) -> None:
    """None of the shares ends with a block of 6 rows or of 20 inputs."""
    architecture, block = tiny_architecture(**FAMILIES[family]), (6, 20)
    weights = random_weights(architecture)
    for name in filter(architecture.may_quantize, tuple(weights)):
        weight, stem = weights.pop(name), name.removesuffix(".weight")
        *more, rows, inputs = weight.shape
        weights[f"{stem}.codes"] = (weight * 100).to(torch.float8_e4m3fn)
        weights[f"{stem}.scales"] = (0.5 + torch.rand(*more, -(-rows // block[0]), -(-inputs // block[1]))) / 100
    write_weights(tmp_path, weights)
    quantization = Quantization(weights=WeightType.SOURCE, fp8_block=block)
    manifest = tiny_manifest(architecture).model_copy(update={"quantization": quantization})
    alone = Stepper.open(manifest, TorchRunner(tmp_path, manifest, CPU))
    ranks = ThreadedRanks(tmp_path, split(manifest, places))
    together = Stepper.open(manifest, ranks)
    assert together.generate(PROMPTS, max_tokens=8) == alone.generate(PROMPTS, max_tokens=8)
    ranks.close()


def test_prefixes_drafts_seeds_and_logprobs_are_as_of_one_rank(tmp_path: Path) -> None:
    architecture = tiny_architecture()
    manifest = tiny_manifest(architecture)
    engine = engine_of(tmp_path, architecture)
    ranks = ThreadedRanks(engine, split(manifest, 2))
    told = []
    for runner in (TorchRunner(engine, manifest, CPU), ranks):
        stepper = Stepper.open(manifest, runner, max_num_tokens=16)
        greedy = stepper.generate(PROMPTS, max_tokens=8)
        again = stepper.generate(PROMPTS, max_tokens=8)  # of blocks that hold the prefix
        assert stepper.usages()[-1].num_cached_tokens > 0
        stepper.answers = {2 * len(PROMPTS) + place: tokens for place, tokens in enumerate(greedy)}
        stepper.rightness = "mixed"
        drafted = stepper.generate(PROMPTS, max_tokens=8)
        stepper.answers = {}
        assert greedy == again == drafted
        sampled = stepper.generate(PROMPTS, max_tokens=8, temperature=0.8, top_p=0.9, seed=7)
        stepper.forget()
        stepper.generate(PROMPTS, max_tokens=4, logprobs=2, prompt_logprobs=1)
        told.append((greedy, sampled, [entry.logprob for entry in stepper.logprobs()]))
    (greedy, sampled, logprobs), (its_greedy, its_sampled, its_logprobs) = told
    assert (its_greedy, its_sampled) == (greedy, sampled)
    assert its_logprobs == pytest.approx(logprobs, abs=1e-5)
    ranks.close()


class Recorder:
    """A follower that keeps what it is shown."""

    def __init__(self) -> None:
        self.tapped: list[torch.Tensor] = []

    def follow(self, step: StepRows[torch.Tensor], outputs: Mapping[int, SequenceOutput]) -> None:
        assert step.tapped is not None
        self.tapped.append(step.tapped)


def test_a_head_reads_what_it_reads_of_one_rank(tmp_path: Path) -> None:
    architecture = tiny_architecture()
    manifest = tiny_manifest(architecture)
    engine = engine_of(tmp_path, architecture)
    shown = []
    ranks = ThreadedRanks(engine, split(manifest, 2), taps=(1, 2))
    for runner in (TorchRunner(engine, manifest, CPU, taps=(1, 2)), ranks):
        recorder = Recorder()
        runner.lead(recorder)
        Stepper.open(manifest, runner, max_num_tokens=16).generate(PROMPTS, max_tokens=3)
        shown.append(recorder.tapped)
    ranks.close()
    for alone, together in zip(*shown, strict=True):
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kv_dtype", [KvType.BFLOAT16, KvType.INT8])
def test_half_precision_and_codes_of_keys_run(tmp_path: Path, kv_dtype: KvType) -> None:
    architecture = tiny_architecture()
    manifest = tiny_manifest(architecture, DType.BFLOAT16, kv_dtype=kv_dtype)
    engine = engine_of(tmp_path, architecture, DType.BFLOAT16)
    ranks = ThreadedRanks(engine, split(manifest, 2))
    (drawn,) = Stepper.open(manifest, ranks).generate([[1, 2, 3]], max_tokens=8)
    assert len(drawn) == 8
    ranks.close()


def test_a_rows_bits_do_not_depend_on_the_rows_beside_it(tmp_path: Path) -> None:
    """Sums are in one order, whatever their size."""
    architecture = tiny_architecture(num_heads=8, num_kv_heads=4)
    manifest = split(tiny_manifest(architecture), 4)
    engine = engine_of(tmp_path, architecture)
    ranks = ThreadedRanks(engine, manifest)
    x = torch.randn(len(ranks.models), 37, architecture.hidden_size, generator=torch.Generator().manual_seed(0))
    numbered = {id(model): place for place, model in enumerate(ranks.models)}
    whole = ranks.on_all(lambda model: model.sum(x[numbered[id(model)]]))
    alone = ranks.on_all(lambda model: model.sum(x[numbered[id(model)], 5:6]))
    assert all(torch.equal(one, whole[0]) for one in whole)
    assert torch.equal(alone[0], whole[0][5:6])
    ranks.close()


def test_blocks_are_what_all_ranks_together_may_take(tmp_path: Path) -> None:
    architecture = tiny_architecture()
    manifest = tiny_manifest(architecture, num_blocks=64)
    engine = engine_of(tmp_path, architecture)
    for places, stages, num_blocks in ((2, 1, 64), (1, 2, 64), (4, 1, 32)):  # 4 hold each key and value twice
        ranks = ThreadedRanks(engine, split(manifest, places, stages))
        assert ranks.num_blocks == num_blocks
        ranks.close()
