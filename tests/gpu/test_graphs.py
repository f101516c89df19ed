"""Decode steps captured as CUDA graphs draw, token for token, what the same steps draw eagerly."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from support.decode_steps import Shape, check_step, random_plan
from support.graphs import StaticRunner
from support.grouped_adapters import adapted_manifest, packed_adapters
from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_weights
from support.stepping import Stepper
from trierarch.builder.manifest import DrafterKind, EngineManifest, KvType, Layer, Moe, Speculation
from trierarch.python_backend.executors.torch import graphed_model
from trierarch.python_backend.executors.torch.captured_step import CapturedStep, GraphPool
from trierarch.python_backend.executors.torch.eager_model import EagerModel
from trierarch.python_backend.executors.torch.gathered_attention import GatheredAttention
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters
from trierarch.python_backend.executors.torch.operators import Operators
from trierarch.python_backend.executors.torch.runner import TorchRunner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda")


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randint(50, (1 + 5 * index % 23,), generator=generator).tolist() for index in range(count)]


@pytest.mark.parametrize("kv_type", [KvType.FLOAT32, KvType.INT8, KvType.FP8])
@pytest.mark.parametrize("is_ours", [False, True], ids=["torch", "kernels"])
def test_graphs_draw_what_eager_steps_draw(tmp_path: Path, is_ours: bool, kv_type: KvType) -> None:
    """Sequences end one after the other, so that steps of eight, four, two and one are captured and replayed in turn."""
    manifest = tiny_manifest(tiny_architecture(), kv_dtype=kv_type)
    gathered = GatheredAttention(16)
    operators = Operators.best(manifest, CUDA) if is_ours else Operators(gathered, LoopedAdapters(), gathered)
    if operators.static_attention is None:
        pytest.skip("no kernels of ours on this GPU")
    drawn = []
    for record in (None, CapturedStep):
        runner = StaticRunner.open(tmp_path, manifest, operators, CUDA, record, taps=(1,), pool=GraphPool())
        stepper = Stepper.open(manifest, runner)
        ids = [stepper.add(prompt, max_tokens=6 + 3 * index) for index, prompt in enumerate(prompts(7))]
        stepper.finish()
        drawn.append([stepper.token_ids(one) for one in ids])
    assert drawn[0] == drawn[1]
    assert runner.graphs is not None
    assert runner.graphs.num_recorded >= 4
    assert not runner.kv.array.view(torch.uint8)[:, :, runner.kv.padding_block].any()


def kernels(manifest: EngineManifest) -> Operators:
    """Of ours, where they run."""
    operators = Operators.best(manifest, CUDA)
    if operators.static_attention is None:
        pytest.skip("no kernels of ours on this GPU")
    return operators


def test_drafts_of_any_lengths_leave_nothing_where_they_are_not(tmp_path: Path) -> None:
    """NaN lies in every slot that is nobody's."""
    manifest = tiny_manifest(tiny_architecture())
    operators = kernels(manifest)
    runner = StaticRunner.open(tmp_path, manifest, operators, CUDA, CapturedStep, pool=GraphPool())
    reference = StaticRunner.open(tmp_path, manifest, operators, CUDA, None)
    for seed in range(30):
        check_step(runner, reference, random_plan(Shape((1, 8), drafts=(0, 0, 1, 2, 4)), seed), seed, math.nan)
        assert not runner.kv.array[:, :, runner.kv.padding_block].any()


def test_one_capture_serves_any_mix_of_adapters(tmp_path: Path) -> None:
    manifest = adapted_manifest()
    runner = StaticRunner.open(tmp_path, manifest, kernels(manifest), CUDA, CapturedStep, pool=GraphPool())
    reference = StaticRunner.open(tmp_path, manifest, Operators.eager(), CUDA, None)
    members = [reference.arrange(one) for one in packed_adapters(manifest)]
    assert runner.graphs is not None
    for seed in range(30):
        shape = Shape((5, 8), drafts=(0,) if seed % 2 else (0, 2), adapters=members[seed % 3 :] + members[: seed % 3])
        check_step(runner, reference, random_plan(shape, seed), seed, 0.0)
    assert runner.graphs.num_recorded <= 8


def test_experts_are_captured(tmp_path: Path) -> None:
    moe = Moe(num_experts=4, experts_per_token=2, intermediate_size=16, normalize_top_k=True)
    manifest = tiny_manifest(tiny_architecture(layers=(Layer(is_moe=True),), moe=moe))
    runner = StaticRunner.open(tmp_path, manifest, kernels(manifest), CUDA, CapturedStep, pool=GraphPool())
    reference = StaticRunner.open(tmp_path, manifest, Operators.eager(), torch.device("cpu"), None)
    for seed in range(10):
        check_step(runner, reference, random_plan(Shape((5, 8)), seed), seed, 0.0)
    assert runner.graphs is not None
    assert runner.graphs.num_recorded == 1


def test_common_steps_are_captured_before_the_first_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With adapters, and beside a KV cache that takes nearly all memory that is left."""
    manifest = adapted_manifest()
    kernels(manifest)
    kv_cache = manifest.kv_cache.model_copy(update={"num_bytes": None, "memory_fraction": 0.9})
    manifest = manifest.model_copy(update={"kv_cache": kv_cache})
    write_weights(tmp_path, random_weights(manifest.architecture))
    with caplog.at_level(logging.INFO):
        runner = TorchRunner(tmp_path, manifest, CUDA)
    assert "decode steps recorded in" in caplog.text
    monkeypatch.setattr(graphed_model, "MAX_GRAPHS", 0)  # of others
    with monkeypatch.context() as patch:
        patch.setattr(EagerModel, "compute", mock.Mock(side_effect=AssertionError("it ran eagerly")))
        for seed in range(10):
            runner.run(random_plan(Shape((1, 8)), seed))


def test_drafts_are_captured_too(tmp_path: Path) -> None:
    speculation = Speculation(drafters=(DrafterKind.PROMPT_LOOKUP,), max_draft_tokens=4)
    manifest = tiny_manifest(tiny_architecture()).model_copy(update={"speculation": speculation})
    write_weights(tmp_path, random_weights(manifest.architecture))
    expected = Stepper.open(manifest, TorchRunner(tmp_path, manifest, torch.device("cpu"))).generate(
        prompts(5), max_tokens=12
    )
    for rightness in ("right", "wrong", "mixed"):
        stepper = Stepper.open(manifest, TorchRunner(tmp_path, manifest, CUDA), enable_prefix_caching=False)
        stepper.answers, stepper.rightness = dict(enumerate(expected)), rightness
        assert stepper.generate(prompts(5), max_tokens=12) == expected


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 1}], ids=["greedy", "drawn"]
)
def test_a_captured_step_reads_the_device_once(tmp_path: Path, sampling: dict[str, Any]) -> None:
    """torch warns of every synchronisation; the one that brings tokens back is all there is."""
    manifest = tiny_manifest(tiny_architecture())
    runner = StaticRunner.open(tmp_path, manifest, kernels(manifest), CUDA, CapturedStep, pool=GraphPool())
    stepper = Stepper.open(manifest, runner)
    stepper.add([1, 2, 3], max_tokens=12, **sampling)
    for _ in range(6):
        stepper.step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as told:
            stepper.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(told) == 1
