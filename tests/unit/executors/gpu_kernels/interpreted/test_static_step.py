"""Static decode steps over the kernels: padding is neither read nor left behind."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from support.decode_steps import Shape, check_step, random_plan
from support.graphs import StaticRunner
from support.grouped_adapters import adapted_manifest, packed_adapters
from support.packed_adapters import random_packed, taking_adapters
from support.random_engine import tiny_architecture, tiny_manifest
from support.stepping import Stepper
from trierarch.builder.manifest import EngineManifest, KvType, Layer
from trierarch.python_backend.executors.torch.captured_step import ReplayedStep
from trierarch.python_backend.executors.torch.kernels.fused_layers import FusedLayers
from trierarch.python_backend.executors.torch.kernels.grouped_adapters import GroupedAdapters
from trierarch.python_backend.executors.torch.kernels.ragged_attention import RaggedAttention
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters
from trierarch.python_backend.executors.torch.operators import Operators
from trierarch.python_backend.executors.torch.warm_up import WarmUp

CPU = torch.device("cpu")


def kernels(manifest: EngineManifest) -> Operators:
    """Sharing keys out where there are four to a program."""
    sizes = {"group": 2, "num_processors": 16, "min_keys_per_split": 4}
    static = RaggedAttention(**sizes, max_seq_len=manifest.limits.max_seq_len)
    if manifest.lora is None:
        return Operators(RaggedAttention(**sizes), LoopedAdapters(), static)
    adapters = GroupedAdapters(manifest.architecture, manifest.lora, CPU)
    return Operators(RaggedAttention(**sizes), adapters, static, adapters)


def test_drafts_of_any_lengths_leave_nothing_where_they_are_not(tmp_path: Path) -> None:
    """NaN lies in every slot that is nobody's, the padding block's among them."""
    manifest = tiny_manifest(tiny_architecture())
    operators = kernels(manifest)
    runner = StaticRunner.open(tmp_path, manifest, operators, CPU)
    reference = StaticRunner.open(tmp_path, manifest, operators, CPU, None)
    for seed in range(4):
        plan = random_plan(Shape((2, 6), drafts=(0, 0, 1, 2, 4)), seed)
        assert len({len(item.draft_token_ids) for item in plan.scheduled}) > 1
        check_step(runner, reference, plan, seed, math.nan)
        assert not runner.kv.array[:, :, runner.kv.padding_block].any()


def test_one_recording_serves_any_mix_of_adapters(tmp_path: Path) -> None:
    """Of other ranks, with gains, whole matrices and embeddings, in other slots from step to step, or of none."""
    manifest = adapted_manifest()
    runner = StaticRunner.open(tmp_path, manifest, kernels(manifest), CPU)
    reference = StaticRunner.open(tmp_path, manifest, Operators.eager(), CPU, None)
    members = [reference.arrange(one) for one in packed_adapters(manifest)]
    assert runner.graphs is not None
    for seed, order in enumerate([(0, 1, 2, 3), (3, 2, 1, 0), (1, 1, 0, 0)]):
        plan = random_plan(Shape((5, 8), adapters=[members[number] for number in order]), seed)
        slots = {item.sequence.adapter and item.sequence.adapter.slot for item in plan.scheduled}
        assert len(slots) > 2, "a mix"
        check_step(runner, reference, plan, seed, 0.0)
        assert runner.graphs.num_recorded == 1
    check_step(runner, reference, random_plan(Shape((5, 8)), 4), 4, 0.0)
    assert runner.graphs.num_recorded == 2, "of no adapter, which launches nothing for them"
    drafting = Shape((3, 3), drafts=(0, 1), adapters=members)
    check_step(runner, reference, random_plan(drafting, 7), 7, 0.0)
    assert runner.graphs.num_recorded == 3


def test_no_mix_of_adapters_is_recorded_behind_the_warm_up(tmp_path: Path) -> None:
    architecture = tiny_architecture(layers=(Layer(),))
    limits = {"max_batch_size": 4, "max_num_tokens": 8, "max_seq_len": 32}
    manifest = taking_adapters(tiny_manifest(architecture, **limits), max_rank=4, max_adapters=2)
    runner = StaticRunner.open(tmp_path, manifest, kernels(manifest), CPU)
    assert runner.graphs is not None
    WarmUp(manifest, runner.model, runner.kv, runner.graphs).run(runner.run)
    assert runner.graphs.num_recorded == 3 + 2 + 2 + 1, (
        "of 4, 2 and 1; of 4 and of 2 in one tile and in two; of 1 in one"
    )
    members = [runner.arrange(random_packed(manifest, seed=seed)) for seed in range(2)]
    with torch.inference_mode():
        for seed in range(3):
            runner.graphs.compute(random_plan(Shape((1, 4), adapters=members), seed))
    assert runner.graphs.num_recorded == 8


@pytest.mark.parametrize("kv_type", [KvType.FLOAT32, KvType.FP8])
def test_replayed_steps_draw_what_eager_ones_draw(tmp_path: Path, kv_type: KvType) -> None:
    manifest = tiny_manifest(tiny_architecture(), kv_dtype=kv_type)
    attention = RaggedAttention(group=2, num_processors=16, min_keys_per_split=4)
    operators = Operators(attention, LoopedAdapters(), attention, layers=FusedLayers(CPU, num_processors=1))
    drawn = []
    for its, record in ((Operators.eager(), None), (operators, None), (operators, ReplayedStep)):
        runner = StaticRunner.open(tmp_path, manifest, its, torch.device("cpu"), record)
        drawn.append(Stepper.open(manifest, runner).generate([[1, 2, 3], [4], [5, 6]], max_tokens=4))
    assert drawn[0] == drawn[1] == drawn[2]
    assert runner.graphs is not None
    assert runner.graphs.num_recorded >= 1
    assert not runner.kv.array.view(torch.uint8)[:, :, runner.kv.padding_block].any()
