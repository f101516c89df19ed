"""What is done before the first request, with steps that are run again in place of graphs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from support.decode_steps import Shape, random_plan
from support.graphs import StaticRunner
from support.random_engine import tiny_architecture, tiny_manifest
from support.stepping import Stepper
from trierarch.builder.errors import ResourceError
from trierarch.builder.manifest import DrafterKind, EngineManifest, Speculation
from trierarch.python_backend.executors.torch import warm_up
from trierarch.python_backend.executors.torch.captured_step import ReplayedStep
from trierarch.python_backend.executors.torch.gathered_attention import GatheredAttention
from trierarch.python_backend.executors.torch.looped_adapters import LoopedAdapters
from trierarch.python_backend.executors.torch.operators import Operators
from trierarch.python_backend.executors.torch.static_step import StaticStep
from trierarch.python_backend.executors.torch.step_memory import bytes_of_steps
from trierarch.python_backend.executors.torch.warm_up import WarmUp
from trierarch.python_backend.scheduling.plan import Plan

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
    limits = SPECULATING.limits.model_copy(update={"max_num_tokens": 150})
    _, one = opened(tmp_path, SPECULATING.model_copy(update={"limits": limits}))
    *_, longest = one.prompts()
    assert [item.num_tokens for item in longest.scheduled] == [64, 64], "as many as a step takes"


def test_what_fails_prevents_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def run(plan: Plan) -> None:
        raise RuntimeError("out of registers")

    opened(tmp_path, SPECULATING)[1].run(run)
    assert "tiny: a step failed before the first request" in caplog.text
    assert "out of registers" in caplog.text


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


def test_memory_of_steps_is_that_of_the_largest_and_of_as_many_as_are_recorded(tmp_path: Path) -> None:
    runner, one = opened(tmp_path, SPECULATING)
    # A prompt takes 400, of which 10 stay; drawing for the largest step takes 50, and its recording 300.
    free = iter([1000, 600, 990, 640, 690, 660, 680])
    num_steps = len(one.decode_steps())
    assert bytes_of_steps(one, runner.run, lambda: next(free), lambda: None) == 400 + 300 + 10 * (num_steps - 1)


def test_no_room_for_a_step_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    def run(plan: Plan) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(ResourceError, match=r"no room for a step of 24 tokens: .* smaller --max-num-tokens"):
        bytes_of_steps(opened(tmp_path, SPECULATING)[1], run, lambda: 0, lambda: None)


def test_memory_that_ends_ends_the_recording_and_not_the_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def record(step: StaticStep, pool: Any) -> ReplayedStep:
        if runner.graphs is not None and runner.graphs.num_recorded == 2:
            raise torch.OutOfMemoryError
        return ReplayedStep(step, pool)

    runner = StaticRunner.open(tmp_path, SPECULATING, GATHERED, CPU, record)
    assert runner.graphs is not None
    WarmUp(SPECULATING, runner.model, runner.kv, runner.graphs).run(runner.run)
    assert runner.graphs.num_recorded == 2
    assert len(Stepper.open(SPECULATING, runner).generate([[1, 2, 3], [4]], max_tokens=3)[0]) == 3
    (message,) = (one.getMessage() for one in caplog.records if one.levelno == logging.WARNING)
    assert message.startswith("no memory to record a decode step of 2: ")
