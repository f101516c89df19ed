"""The loop over a real scheduler and the fake runner: what is its own; test_protocol.py has what every executor keeps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from support.token_stream import TokenStream
from trierarch.python_backend.errors import ExecutorFailed, InvalidRequest
from trierarch.python_backend.executors.fake import FakeRunner, next_token
from trierarch.python_backend.executors.loop import StepExecutor
from trierarch.python_backend.executors.runner import RunnerLost
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.request import FinishReason, Request, SamplingParams
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.plan import Plan, SequenceOutput, StepOutput
from trierarch.python_backend.scheduling.scheduler import Scheduler
from trierarch.python_backend.speculation.speculator import Speculator

VOCAB = 97
BLOCK_SIZE = 4


class GatedRunner(FakeRunner):
    """A fake runner that waits at a gate before each step and can be told to draw nothing for some requests."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks, BLOCK_SIZE, VOCAB)
        self.gate = threading.Event()
        self.gate.set()
        self.undrawable: set[str] = set()
        self.is_closed = False
        self.loss: str | None = None

    def run(self, plan: Plan) -> StepOutput:
        assert self.gate.wait(60)
        if self.loss is not None:
            raise RunnerLost(self.loss)
        output = super().run(plan)
        for item in plan.scheduled:
            if item.sequence.request.request_id in self.undrawable:
                error = InvalidRequest("logit_bias", "all", "leave a token")
                output.outputs[item.sequence.sequence_id] = SequenceOutput(error=error)
        return output

    def close(self) -> None:
        self.is_closed = True


def make_executor(runner: FakeRunner, speculator: Speculator | None = None) -> StepExecutor:
    config = SchedulerConfig(max_batch_size=4, max_seq_len=64, max_num_tokens=16, max_queue_size=8)
    kv = KVCacheManager(runner.num_blocks, BLOCK_SIZE, True)
    return StepExecutor(Scheduler(config, kv, ()), runner, VOCAB, speculator)


def make_request(request_id: str, prompt: list[int]) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(max_tokens=8),
        arrival_time=time.monotonic(),
    )


def expected(prompt: list[int], count: int) -> list[int]:
    context = list(prompt)
    for _ in range(count):
        context.append(next_token(context, 3, VOCAB))
    return context[len(prompt) :]


@pytest.fixture
def runner() -> GatedRunner:
    return GatedRunner(num_blocks=32)


@pytest.fixture
def executor(runner: GatedRunner) -> Iterator[StepExecutor]:
    executor = make_executor(runner)
    yield executor
    runner.gate.set()
    executor.close()
    assert runner.is_closed


def test_a_lost_runner_ends_everybody_and_nobody_is_taken_in(executor: StepExecutor, runner: GatedRunner) -> None:
    running, waiting = TokenStream(), TokenStream()
    runner.gate.clear()
    executor.submit(make_request("running", [1, 2, 3]), running)
    executor.submit(make_request("waiting", [1, 2, 3]), waiting)
    runner.loss = "rank 1 of 2 has ended"
    runner.gate.set()
    for stream in (running, waiting):
        _, last = stream.finish()
        assert last.finish_reason is FinishReason.ERROR
        assert (type(last.error), str(last.error)) == (ExecutorFailed, "rank 1 of 2 has ended")
    assert not executor.is_healthy
    with pytest.raises(ExecutorFailed, match=r"the engine is lost, .*: rank 1 of 2 has ended"):
        executor.submit(make_request("late", [1]), TokenStream())
    assert executor.drain(1.0)


def test_a_runner_is_lost_between_requests_too(executor: StepExecutor) -> None:
    assert executor.is_healthy
    executor.lose("rank 1 of 2 has ended")
    assert not executor.is_healthy
    with pytest.raises(ExecutorFailed, match="rank 1 of 2 has ended"):
        executor.submit(make_request("late", [1]), TokenStream())


class BrokenSpeculator(Speculator):
    """Has a bug, once."""

    is_broken = True

    def propose(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        if self.is_broken:
            self.is_broken = False
            raise ZeroDivisionError("on purpose")
        return super().propose(plan)


def test_a_bug_of_ours_ends_those_it_concerns_and_the_loop_goes_on(runner: GatedRunner) -> None:
    executor = make_executor(runner, speculator=BrokenSpeculator(None, VOCAB))
    first, second = TokenStream(), TokenStream()
    executor.submit(make_request("first", [1, 2, 3]), first)
    _, last = first.finish()
    assert (last.finish_reason, type(last.error)) == (FinishReason.ERROR, ExecutorFailed)
    executor.submit(make_request("second", [1, 2, 3]), second)
    _, last = second.finish()
    assert last.finish_reason is FinishReason.LENGTH
    executor.close()


def test_a_sequence_that_cannot_be_drawn_from_ends_alone(executor: StepExecutor, runner: GatedRunner) -> None:
    runner.gate.clear()
    runner.undrawable = {"bad"}
    bad, good = TokenStream(), TokenStream()
    executor.submit(make_request("good", [3, 4]), good)
    executor.submit(make_request("bad", [1, 2]), bad)
    runner.gate.set()
    _, last = bad.finish()
    assert isinstance(last.error, InvalidRequest)
    assert good.finish()[0] == expected([3, 4], 8)
