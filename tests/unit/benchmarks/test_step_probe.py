from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest import mock

import pytest

from support.checkpoints import random_checkpoint
from support.scheduling import make_request
from trierarch.benchmarks.workers.step_probe import StepClock, StepProbeWorker, TimedLibrary
from trierarch.builder.build import build
from trierarch.builder.compile import find_compiler
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import DType
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.sequence import Sequence

PROMPT = (5, 6, 7)


class Time:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def spend(self, seconds: float) -> None:
        self.seconds += seconds


def plan_of(*starts: int, num_tokens: int = 1) -> Plan:
    """Each sequence computes `num_tokens` from its start; below len(PROMPT) they are of the prompt."""
    request = make_request("0", PROMPT)
    return Plan(
        tuple(
            ScheduledSequence(Sequence(index, request, 0, [*PROMPT, 8, 9]), start, num_tokens)
            for index, start in enumerate(starts)
        )
    )


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def clock(time: Time) -> StepClock:
    clock = StepClock(time)
    clock.reset(2)
    return clock


def step(clock: StepClock, time: Time, plan: Plan) -> None:
    """10 ms, of which kernels take 7 in two calls and the sampler 2."""
    clock.begin(plan)
    clock.time("kernel_seconds", time.spend, 0.006)
    clock.time("kernel_seconds", time.spend, 0.001)
    clock.time("sampling_seconds", time.spend, 0.002)
    time.spend(0.001)


def test_a_step_lasts_until_the_next_one(clock: StepClock, time: Time) -> None:
    for _ in range(3):
        step(clock, time, plan_of(3, 4))

    assert clock.sums() == pytest.approx(
        {"step_seconds": 0.02, "kernel_seconds": 0.014, "sampling_seconds": 0.004, "num_steps": 2}
    )


@pytest.mark.parametrize(
    "plan",
    [plan_of(3), plan_of(3, 3, 3), plan_of(3, 2), plan_of(2, num_tokens=2), plan_of(0, 0, num_tokens=3)],
    ids=["fewer", "more", "a prompt's last token", "one with two tokens", "prompts"],
)
def test_only_whole_decode_steps_count(clock: StepClock, time: Time, plan: Plan) -> None:
    step(clock, time, plan)
    step(clock, time, plan)

    assert clock.sums()["num_steps"] == 0


def test_the_pause_behind_the_last_step_counts_for_nothing(clock: StepClock, time: Time) -> None:
    step(clock, time, plan_of(3, 4))
    time.spend(60)
    clock.reset(2)
    step(clock, time, plan_of(3, 4))
    step(clock, time, plan_of(4, 5))

    assert clock.sums()["step_seconds"] == pytest.approx(0.01)


def test_a_part_that_fails_is_timed_too(clock: StepClock, time: Time) -> None:
    def fail() -> None:
        time.spend(0.005)
        raise MemoryError

    clock.begin(plan_of(3, 4))
    with pytest.raises(MemoryError):
        clock.time("kernel_seconds", fail)
    clock.begin(plan_of(3, 4))

    assert clock.sums()["kernel_seconds"] == pytest.approx(0.005)


def test_only_kernels_are_timed(clock: StepClock, time: Time) -> None:
    def act(seconds: float) -> float:
        time.spend(seconds)
        return seconds

    functions = {"trierarch_decoder_hidden": act, "trierarch_decoder_logits": act, "trierarch_pack": act}
    library = TimedLibrary(cast(ctypes.CDLL, SimpleNamespace(**functions)), clock)
    clock.begin(plan_of(3, 4))

    assert library.trierarch_decoder_hidden(1.0) == 1.0
    assert library.trierarch_decoder_logits(2.0) == 2.0
    assert library.trierarch_pack(4.0) == 4.0
    clock.begin(plan_of(3, 4))
    assert clock.sums()["kernel_seconds"] == 3.0
    assert clock.sums()["step_seconds"] == 7.0


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[StepProbeWorker]:
    engine = tmp_path / "engine"
    checkpoint = random_checkpoint("llama", tmp_path / "checkpoint")
    build(
        BuildConfig(model=str(checkpoint), output=engine, dtype=DType.FLOAT32, kv_cache_bytes=1 << 20, speculation=())
    )
    worker = StepProbeWorker(engine)
    yield worker
    worker.close()
    mock.patch.stopall()


@pytest.mark.skipif(find_compiler() is None, reason="needs a compiler")
def test_a_real_engine_counts_the_steps_of_each_call(worker: StepProbeWorker) -> None:
    for num_prompts, num_tokens in ((2, 64), (3, 48)):
        prompts = [[index + 1, 2, 3, 4] for index in range(num_prompts)]
        outputs = worker.generate(prompts, num_tokens)
        counters = worker.counters()

        assert [len(output) for output in outputs] == [num_tokens] * num_prompts
        assert 0 < counters["num_steps"] < num_tokens
        assert 0 < counters["kernel_seconds"] + counters["sampling_seconds"] < counters["step_seconds"]
