"""Launched steps on CUDA: they draw what a CPU draws one step after another, and none of them waits for the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_weights
from support.stepping import Stepper
from trierarch.python_backend.executors.runner import LaunchingRunner
from trierarch.python_backend.executors.torch.runner import TorchRunner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SAMPLINGS: list[dict[str, Any]] = [{}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "seed": 1}]


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randint(50, (1 + 5 * index % 23,), generator=generator).tolist() for index in range(count)]


def answers(folder: Path, device: str, is_launching: bool) -> tuple[dict[tuple[str, int], list[int]], int]:
    manifest = tiny_manifest(tiny_architecture())
    stepper = Stepper.open(manifest, TorchRunner(folder, manifest, torch.device(device)), max_num_tokens=16)
    for number, prompt in enumerate(prompts(9)):
        stepper.add(prompt, max_tokens=6 + 3 * number, **SAMPLINGS[number % 2])
    num_ahead = 0
    while stepper.scheduler.has_work:
        num_ahead += stepper.fly() if is_launching else bool(stepper.step())
    return stepper.streams(), num_ahead


def test_they_draw_what_a_cpu_draws_one_step_after_another(tmp_path: Path) -> None:
    write_weights(tmp_path, random_weights(tiny_architecture()))
    expected, _ = answers(tmp_path, "cpu", is_launching=False)
    found, num_ahead = answers(tmp_path, "cuda", is_launching=True)
    assert found == expected
    assert num_ahead > 20


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "drawn"])
def test_a_launch_waits_for_nothing(tmp_path: Path, sampling: dict[str, Any]) -> None:
    """torch raises where the host would wait. Kernels were compiled and graphs recorded by the steps before."""
    manifest = tiny_manifest(tiny_architecture())
    write_weights(tmp_path, random_weights(manifest.architecture))
    runner = TorchRunner(tmp_path, manifest, torch.device("cuda"))
    assert isinstance(runner, LaunchingRunner)
    stepper = Stepper.open(manifest, runner)
    for _ in range(2):
        stepper.generate(prompts(3), max_tokens=6, **sampling)
    for prompt in prompts(3):
        stepper.add(prompt, max_tokens=6, **sampling)
    plan = stepper.scheduler.schedule()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [runner.launch(plan)]
        ahead = stepper.scheduler.schedule_ahead(plan, lambda request: False)
        assert ahead is not None
        steps.append(runner.launch(ahead))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(len(step.collect().outputs) == 3 for step in steps)
