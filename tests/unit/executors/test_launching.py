"""The loop where it launches steps: what is done when, and what becomes of everybody when something happens in flight."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.eventually import eventually
from support.late_runner import LateRunner
from support.token_stream import TokenStream
from trierarch.builder.manifest import DrafterKind, Speculation
from trierarch.python_backend.errors import Cancelled, ExecutorFailed
from trierarch.python_backend.executors.fake import next_token
from trierarch.python_backend.executors.loop import StepExecutor
from trierarch.python_backend.executors.runner import RunnerLost
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.request import FinishReason, Request, SamplingParams
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.plan import Plan
from trierarch.python_backend.scheduling.scheduler import Scheduler
from trierarch.python_backend.speculation.prompt_lookup import PromptLookupDrafter
from trierarch.python_backend.speculation.speculator import Speculator
from trierarch.python_backend.speculation.stretches import SHORTEST, TRIAL, Stretches

VOCAB = 97
BLOCK_SIZE = 4


def make_request(request_id: str, prompt: list[int], **sampling: Any) -> Request:
    params = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, **sampling})
    return Request(
        request_id=request_id, prompt_token_ids=tuple(prompt), sampling=params, arrival_time=time.monotonic()
    )


def expected(prompt: list[int], count: int) -> list[int]:
    context = list(prompt)
    for _ in range(count):
        context.append(next_token(context, 3, VOCAB))
    return context[len(prompt) :]


@pytest.fixture
def runner() -> LateRunner:
    return LateRunner(32, BLOCK_SIZE, VOCAB)


class ListeningGuides:
    """As much of Guides as the loop knows: it notes of whom it hears that they have ended."""

    def __init__(self) -> None:
        self.ended: list[int] = []
        self.masking = self

    def listen(self, on_news: Callable[[], None]) -> None:
        pass

    def masks(self, plan: Plan) -> None:
        self.ended += plan.finished_sequence_ids

    def close(self) -> None:
        pass


@pytest.fixture
def guides() -> ListeningGuides:
    return ListeningGuides()


@pytest.fixture
def executor(runner: LateRunner, guides: Any) -> Iterator[StepExecutor]:
    config = SchedulerConfig(max_batch_size=4, max_seq_len=64, max_num_tokens=16, max_queue_size=8)
    scheduler = Scheduler(config, KVCacheManager(runner.num_blocks, BLOCK_SIZE, True), ())
    executor = StepExecutor(scheduler, runner, VOCAB, guides=guides, launcher=runner)
    yield executor
    runner.gate.set()
    executor.close()
    assert runner.is_closed
    scheduler.check_integrity()
    assert executor.stats().used_blocks == 0


def test_each_step_is_launched_before_the_one_before_it_is_collected(
    executor: StepExecutor, runner: LateRunner
) -> None:
    stream = TokenStream()
    executor.submit(make_request("a", [1, 2, 3], max_tokens=4), stream)
    assert stream.finish()[0] == expected([1, 2, 3], 4)
    eventually(lambda: runner.events.count("run") == 1, "the runner hears who has ended")
    assert runner.events == [
        *("launch 0", "launch 1", "collect 0", "launch 2", "collect 1", "launch 3", "collect 2", "collect 3"),
        "run",
    ]


def test_a_step_that_cannot_be_planned_ahead_waits_for_the_one_before_it(
    executor: StepExecutor, runner: LateRunner
) -> None:
    stream = TokenStream()
    executor.submit(make_request("a", [1, 2, 3], max_tokens=3, logprobs=0), stream)
    assert stream.finish()[0] == expected([1, 2, 3], 3)
    assert not runner.plans


def test_where_somebody_guesses_steps_are_launched_for_a_stretch_and_one_after_another_for_the_next(
    runner: LateRunner,
) -> None:
    config = SchedulerConfig(max_batch_size=1, max_seq_len=120, max_num_tokens=16, max_queue_size=8)
    scheduler = Scheduler(config, KVCacheManager(runner.num_blocks, BLOCK_SIZE, True), ())
    speculation = Speculation(drafters=(DrafterKind.PROMPT_LOOKUP,), max_draft_tokens=4)
    speculator = Speculator(speculation, VOCAB, [PromptLookupDrafter()], stretches=Stretches())
    executor = StepExecutor(scheduler, runner, VOCAB, speculator, launcher=runner)
    stream = TokenStream()
    executor.submit(make_request("a", [1, 2, 3], max_tokens=100), stream)
    assert stream.finish()[0] == expected([1, 2, 3], 100)
    executor.close()
    scheduler.check_integrity()
    kinds = ["run" if event == "run" else "launch" for event in runner.events if not event.startswith("collect")]
    stretches = [(kind, len(list(steps))) for kind, steps in itertools.groupby(kinds)]
    assert stretches[0] == ("run", SHORTEST + 1), "the prompt's step is none of a stretch"
    assert stretches[1][0] == "launch"
    assert stretches[1][1] >= TRIAL, "which goes on if it was worth more"


def test_arrivals_join_steps_in_flight(executor: StepExecutor, runner: LateRunner) -> None:
    first, second = TokenStream(), TokenStream()
    runner.gate.clear()
    executor.submit(make_request("first", [1, 2, 3], max_tokens=20), first)
    eventually(lambda: len(runner.plans) == 2, "a second step in flight")
    executor.submit(make_request("second", [4, 5], max_tokens=6), second)
    runner.gate.set()
    assert first.finish()[0] == expected([1, 2, 3], 20)
    assert second.finish()[0] == expected([4, 5], 6)
    assert [len(plan.scheduled) for plan in runner.plans[:3]] == [1, 1, 2]
    assert "run" not in runner.events[: runner.events.index("collect 19")]


def test_who_has_ended_is_told_by_launched_steps_too(
    executor: StepExecutor, runner: LateRunner, guides: ListeningGuides
) -> None:
    first, second = TokenStream(), TokenStream()
    runner.gate.clear()
    executor.submit(make_request("first", [1, 2, 3], max_tokens=2), first)
    executor.submit(make_request("second", [4, 5], max_tokens=20), second)
    runner.gate.set()
    first.finish()
    second.finish()
    told = [sequence_id for plan in runner.plans for sequence_id in plan.finished_sequence_ids]
    assert told == [0]
    eventually(lambda: guides.ended == [0, 1], "the last one's end")


def test_who_is_cancelled_in_flight_ends_and_the_others_go_on(executor: StepExecutor, runner: LateRunner) -> None:
    gone, stays = TokenStream(), TokenStream()
    runner.gate.clear()
    executor.submit(make_request("stays", [3, 4]), stays)
    executor.submit(make_request("gone", [1, 2], max_tokens=40), gone)
    eventually(lambda: len(runner.plans) == 2, "a second step in flight")
    executor.abort("gone")
    runner.gate.set()
    _, last = gone.finish()
    assert (last.finish_reason, type(last.error)) == (FinishReason.CANCELLED, Cancelled)
    assert stays.finish()[0] == expected([3, 4], 8)


def fails_once(number: int, runner: LateRunner) -> Any:
    """Raises for the first plan that is looked at when so many steps were launched."""
    has_failed = threading.Event()

    def fail(plan: Plan) -> None:
        if len(runner.plans) >= number and not has_failed.is_set():
            has_failed.set()
            raise RuntimeError("on purpose")

    return fail


@pytest.mark.parametrize("place", ["at_launch", "at_collect"])
@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_a_step_that_fails_once_costs_nobody_a_token(
    executor: StepExecutor, runner: LateRunner, place: str, number: int
) -> None:
    setattr(runner, place, fails_once(number, runner))
    prompts = {"a": [1, 2, 3], "b": [3, 4], "c": [5]}
    streams = {name: TokenStream() for name in prompts}
    for name, prompt in prompts.items():
        executor.submit(make_request(name, prompt), streams[name])
    for name, prompt in prompts.items():
        assert streams[name].finish()[0] == expected(prompt, 8)
    assert "run" in runner.events


@pytest.mark.parametrize("place", ["at_launch", "at_collect"])
def test_only_the_culprit_of_a_step_in_flight_ends(executor: StepExecutor, runner: LateRunner, place: str) -> None:
    def poison(plan: Plan) -> None:
        if any(i.sequence.request.request_id == "bad" and i.sequence.num_output_tokens >= 3 for i in plan.scheduled):
            raise RuntimeError("poisoned")

    runner.at_collect = poison
    setattr(runner, place, poison)
    bad, good = TokenStream(), TokenStream()
    executor.submit(make_request("good", [3, 4], max_tokens=12), good)
    executor.submit(make_request("bad", [1, 2], max_tokens=12), bad)
    tokens, last = bad.finish()
    assert tokens == expected([1, 2], 3)
    assert (last.finish_reason, type(last.error)) == (FinishReason.ERROR, ExecutorFailed)
    assert good.finish()[0] == expected([3, 4], 12)
    assert executor.is_healthy


def test_a_sequence_that_cannot_be_drawn_from_ends_alone(executor: StepExecutor, runner: LateRunner) -> None:
    bad, good = TokenStream(), TokenStream()
    runner.undrawable = {"bad"}
    executor.submit(make_request("good", [3, 4]), good)
    executor.submit(make_request("bad", [1, 2]), bad)
    assert isinstance(bad.finish()[1].error, ExecutorFailed)
    assert good.finish()[0] == expected([3, 4], 8)


@pytest.mark.parametrize("place", ["at_launch", "at_collect"])
def test_a_runner_that_is_lost_in_flight_ends_everybody(executor: StepExecutor, runner: LateRunner, place: str) -> None:
    def lose(plan: Plan) -> None:
        if len(runner.plans) > 2:
            raise RunnerLost("the device is gone")

    setattr(runner, place, lose)
    stream = TokenStream()
    executor.submit(make_request("a", [1, 2, 3], max_tokens=20), stream)
    assert str(stream.finish()[1].error) == "the device is gone"
    assert not executor.is_healthy


@pytest.mark.parametrize("way", ["close", "drain", "lose"])
def test_the_end_may_come_while_a_step_is_in_flight(executor: StepExecutor, runner: LateRunner, way: str) -> None:
    stream = TokenStream()
    runner.gate.clear()
    executor.submit(make_request("a", [1, 2, 3], max_tokens=40), stream)
    eventually(lambda: len(runner.plans) == 2, "a second step in flight")
    ends = {"close": executor.close, "drain": lambda: executor.drain(0.0), "lose": lambda: executor.lose("gone")}
    ender = threading.Thread(target=ends[way])
    ender.start()
    if way != "close":
        ender.join(20)
    else:
        eventually(lambda: executor._is_closing, "the call to close")
    runner.gate.set()
    _, last = stream.finish()
    assert last.finish_reason is (FinishReason.ERROR if way == "lose" else FinishReason.CANCELLED)
    ender.join(20)
    assert not ender.is_alive()
    assert len(runner.plans) <= 3
