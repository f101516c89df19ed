"""Decode steps captured as CUDA graphs draw, token for token, what the same steps draw eagerly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.graphs import StaticRunner
from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_weights
from support.stepping import Stepper
from trierarch.builder.manifest import KvType
from trierarch.python_backend.executors.torch.captured_step import CapturedStep
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
        pool = torch.cuda.graph_pool_handle()
        runner = StaticRunner.open(tmp_path, manifest, operators, CUDA, record, taps=(1,), pool=pool)
        stepper = Stepper.open(manifest, runner)
        ids = [stepper.add(prompt, max_tokens=6 + 3 * index) for index, prompt in enumerate(prompts(7))]
        stepper.finish()
        drawn.append([stepper.token_ids(one) for one in ids])
    assert drawn[0] == drawn[1]
    assert runner.graphs is not None
    assert runner.graphs.num_recorded >= 4
    assert not runner.kv.array.view(torch.uint8)[:, :, runner.kv.padding_block].any()


def test_drafts_are_captured_too(tmp_path: Path) -> None:
    manifest = tiny_manifest(tiny_architecture())
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
    operators = Operators.best(manifest, CUDA)
    if operators.static_attention is None:
        pytest.skip("no kernels of ours on this GPU")
    runner = StaticRunner.open(tmp_path, manifest, operators, CUDA, CapturedStep, pool=torch.cuda.graph_pool_handle())
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
