"""What is done before the first request, with steps that are run again in place of graphs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch

from support.decode_steps import Shape, random_plan
from support.graphs import StaticRunner
from support.random_engine import tiny_architecture, tiny_manifest
from support.stepping import Stepper
from trierarch.builder.manifest import DrafterKind, EngineManifest, Speculation
from trierarch.python_backend.executors.torch import warm_up
from trierarch.python_backend.executors.torch.gathered_attention import GatheredAttention
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters
from trierarch.python_backend.executors.torch.operators import Operators
from trierarch.python_backend.executors.torch.warm_up import WarmUp

CPU = torch.device("cpu")
GATHERED = Operators(GatheredAttention(16), LoopedAdapters(), GatheredAttention(16))
SPECULATING = tiny_manifest(tiny_architecture(), max_num_tokens=24).model_copy(
    update={"speculation": Speculation(drafters=(DrafterKind.PROMPT_LOOKUP,), max_draft_tokens=4)}
)


def opened(folder: Path, manifest: EngineManifest) -> tuple[StaticRunner, WarmUp]:
    runner = StaticRunner.open(folder, manifest, GATHERED, CPU)
    assert runner.graphs is not None
    return runner, WarmUp(manifest, runner.model, runner.kv, runner.graphs)


def test_no_common_step_is_recorded_later(tmp_path: Path) -> None:
    runner, one = opened(tmp_path, SPECULATING)
    one.run(runner.run)
    assert runner.graphs is not None
    rows = {size * length for size in (8, 4, 2, 1) for length in (1, 2, 4, 5) if size * length <= 24}
    assert runner.graphs.num_recorded == len(rows), "the attention here tells them apart by that"
    assert not runner.kv.array.any(), "nobody's keys"
    with torch.inference_mode():
        for seed in range(12):
            runner.graphs.compute(random_plan(Shape((1, 8)), seed))
            runner.graphs.compute(random_plan(Shape((1, 4), drafts=(0, 1, 3)), seed))
    assert runner.graphs.num_recorded == len(rows)


def test_answers_are_the_same_behind_it(tmp_path: Path) -> None:
    drawn = []
    for is_warm in (False, True):
        runner, one = opened(tmp_path, SPECULATING)
        if is_warm:
            one.run(runner.run)
        stepper = Stepper.open(SPECULATING, runner)
        drawn.append(stepper.generate([[1, 2, 3], [4]], max_tokens=6, temperature=0.9, seed=5, repetition_penalty=1.3))
    assert drawn[0] == drawn[1]


def test_prompts_are_of_every_length_that_a_kernel_may_be_compiled_for(tmp_path: Path) -> None:
    _, one = opened(tmp_path, SPECULATING)
    prompts = [(item.start, item.num_tokens) for plan in one.prompts() for item in plan.scheduled]
    assert prompts == [(start, size) for size in (8, 16, 24) for start in (0, 64 - size)]


def test_steps_are_bounded_in_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "MAX_DECODE_STEPS", 3)
    runner, one = opened(tmp_path, SPECULATING)
    one.run(runner.run)
    assert runner.graphs is not None
    assert runner.graphs.num_recorded == 3


def test_steps_are_bounded_in_seconds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each look at the clock finds seven more gone: there is time for two steps."""
    ticks: Iterator[int] = count(0, 7)
    runner, one = opened(tmp_path, SPECULATING)
    with caplog.at_level(logging.INFO, logger=warm_up.__name__):
        one.run(runner.run, clock=lambda: float(next(ticks)))
    assert runner.graphs is not None
    assert runner.graphs.num_recorded == 2
    assert caplog.messages == [
        "tiny: recording decode steps, 0 of 14 so far",
        "tiny: recording decode steps, 1 of 14 so far",
        "tiny: no time for 12 of 14 decode steps",
        "tiny: prompts' kernels ready in 7.0 s, 2 decode steps recorded in 28.0 s",
    ]
