"""The loop over a real scheduler and the fake runner: what every sink sees, whatever happens."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from trierarch.python_backend.errors import Cancelled, ExecutorFailed, InvalidRequest, Overloaded, ShuttingDown
from trierarch.python_backend.executors.fake import FakeRunner, next_token
from trierarch.python_backend.executors.loop import StepExecutor
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.request import FinishReason, Request, SamplingParams, SpeculationParams, TokenDelta
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.plan import Plan, SequenceOutput, StepOutput
from trierarch.python_backend.scheduling.scheduler import Scheduler
from trierarch.python_backend.speculation.speculator import Speculator

VOCAB = 97
BLOCK_SIZE = 4


@dataclass
class Stream:
    """Collects one request's deltas."""

    deltas: queue.SimpleQueue[TokenDelta] = field(default_factory=queue.SimpleQueue)

    def __call__(self, delta: TokenDelta) -> None:
        self.deltas.put(delta)

    def finish(self) -> tuple[list[int], TokenDelta]:
        """All token ids and the last delta."""
        tokens: list[int] = []
        while True:
            delta = self.deltas.get(timeout=10)
            tokens += delta.token_ids
            if delta.finish_reason is not None:
                return tokens, delta


class GatedRunner(FakeRunner):
    """A fake runner that waits at a gate before each step and can be told to fail for some requests."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks, BLOCK_SIZE, VOCAB)
        self.gate = threading.Event()
        self.gate.set()
        self.poison: set[str] = set()
        self.undrawable: set[str] = set()
        self.is_closed = False

    def run(self, plan: Plan) -> StepOutput:
        self.gate.wait(10)
        if self.poison & {item.sequence.request.request_id for item in plan.scheduled}:
            raise RuntimeError("poisoned")
        output = super().run(plan)
        for item in plan.scheduled:
            if item.sequence.request.request_id in self.undrawable:
                error = InvalidRequest("logit_bias", "all", "leave a token")
                output.outputs[item.sequence.sequence_id] = SequenceOutput(error=error)
        return output

    def close(self) -> None:
        self.is_closed = True


def make_executor(runner: FakeRunner, max_queue_size: int = 8, speculator: Speculator | None = None) -> StepExecutor:
    config = SchedulerConfig(max_batch_size=4, max_seq_len=64, max_num_tokens=16, max_queue_size=max_queue_size)
    kv = KVCacheManager(runner.num_blocks, BLOCK_SIZE, True)
    return StepExecutor(Scheduler(config, kv, ()), runner, VOCAB, speculator)


def make_request(request_id: str, prompt: list[int], max_tokens: int = 8, n: int = 1) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(max_tokens=max_tokens, n=n),
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


def test_streams_the_tokens_that_can_be_worked_out_by_hand(executor: StepExecutor) -> None:
    # sum(1, 2, 3) * 3 + 3 = 21; sum(1, 2, 3, 21) * 3 + 4 = 85
    stream = Stream()
    executor.submit(make_request("a", [1, 2, 3], max_tokens=2), stream)
    tokens, last = stream.finish()
    assert tokens == [21, 85]
    assert last.finish_reason is FinishReason.LENGTH
    assert last.usage is not None
    assert (last.usage.num_prompt_tokens, last.usage.num_output_tokens) == (3, 2)


def test_many_requests_at_once_give_what_each_gives_alone(executor: StepExecutor) -> None:
    prompts = {f"r{i}": [i, i + 1, *range(i)] for i in range(1, 8)}
    streams = {request_id: Stream() for request_id in prompts}
    for request_id, prompt in prompts.items():
        executor.submit(make_request(request_id, prompt), streams[request_id])
    for request_id, prompt in prompts.items():
        assert streams[request_id].finish()[0] == expected(prompt, 8)


def test_all_n_sequences_end_and_the_id_is_free_again(executor: StepExecutor) -> None:
    for _ in range(2):
        stream = Stream()
        executor.submit(make_request("same", [5, 6, 7, 8, 9], n=3), stream)
        ended = set()
        while len(ended) < 3:
            delta = stream.deltas.get(timeout=10)
            if delta.finish_reason is not None:
                ended.add(delta.index)
        assert ended == {0, 1, 2}


def test_abort_ends_one_request_and_frees_its_blocks(executor: StepExecutor, runner: GatedRunner) -> None:
    runner.gate.clear()
    gone, stays = Stream(), Stream()
    executor.submit(make_request("gone", [1, 2], max_tokens=40), gone)
    executor.submit(make_request("stays", [3, 4]), stays)
    executor.abort("gone")
    executor.abort("never heard of it")
    runner.gate.set()
    _, last = gone.finish()
    assert last.finish_reason is FinishReason.CANCELLED
    assert isinstance(last.error, Cancelled)
    assert stays.finish()[0] == expected([3, 4], 8)
    wait_until(lambda: executor.stats().used_blocks == 0)


def test_one_of_n_sequences_can_be_aborted_alone(executor: StepExecutor, runner: GatedRunner) -> None:
    runner.gate.clear()
    stream = Stream()
    executor.submit(make_request("a", [5, 6, 7], n=2), stream)
    executor.abort("a", index=1)
    runner.gate.set()
    reasons = {}
    while len(reasons) < 2:
        delta = stream.deltas.get(timeout=10)
        if delta.finish_reason is not None:
            reasons[delta.index] = delta.finish_reason
    assert reasons == {0: FinishReason.LENGTH, 1: FinishReason.CANCELLED}


def test_only_the_culprit_of_a_failed_step_ends(executor: StepExecutor, runner: GatedRunner) -> None:
    runner.gate.clear()
    runner.poison = {"bad"}
    bad, good = Stream(), Stream()
    executor.submit(make_request("good", [3, 4]), good)
    executor.submit(make_request("bad", [1, 2]), bad)
    runner.gate.set()
    _, last = bad.finish()
    assert last.finish_reason is FinishReason.ERROR
    assert isinstance(last.error, ExecutorFailed)
    assert good.finish()[0] == expected([3, 4], 8)


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
    first, second = Stream(), Stream()
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
    bad, good = Stream(), Stream()
    executor.submit(make_request("good", [3, 4]), good)
    executor.submit(make_request("bad", [1, 2]), bad)
    runner.gate.set()
    _, last = bad.finish()
    assert isinstance(last.error, InvalidRequest)
    assert good.finish()[0] == expected([3, 4], 8)


def test_a_full_queue_answers_at_once(runner: GatedRunner) -> None:
    runner.gate.clear()
    executor = make_executor(runner, max_queue_size=1)
    try:
        with pytest.raises(Overloaded):
            submit_many(executor, 8)
    finally:
        runner.gate.set()
        executor.close()


def test_a_bad_request_is_refused_and_leaves_nothing_behind(executor: StepExecutor) -> None:
    with pytest.raises(InvalidRequest):
        executor.submit(make_request("long", [1] * 60, max_tokens=5), Stream())
    with pytest.raises(InvalidRequest):
        executor.submit(make_request("empty", []), Stream())
    with pytest.raises(InvalidRequest):
        executor.submit(make_request("foreign", [VOCAB]), Stream())
    draft = SpeculationParams(draft_token_ids=(1, VOCAB))
    with pytest.raises(InvalidRequest, match="draft_token_ids"):
        executor.submit(replace(make_request("guess", [1]), speculation=draft), Stream())
    assert executor.drain(timeout=0.0)


def test_drain_lets_running_requests_finish_and_refuses_new_ones(executor: StepExecutor, runner: GatedRunner) -> None:
    runner.gate.clear()
    stream = Stream()
    executor.submit(make_request("a", [1]), stream)
    drained: list[bool] = []
    drainer = threading.Thread(target=lambda: drained.append(executor.drain(timeout=10)))
    drainer.start()
    wait_until(lambda: _refuses(executor))
    runner.gate.set()
    drainer.join(10)
    assert drained == [True]
    assert stream.finish()[0] == expected([1], 8)


def test_drain_cancels_what_does_not_finish_in_time(executor: StepExecutor, runner: GatedRunner) -> None:
    runner.gate.clear()
    stream = Stream()
    executor.submit(make_request("slow", [1], max_tokens=40), stream)
    assert not executor.drain(timeout=0.05)
    runner.gate.set()
    assert stream.finish()[1].finish_reason is FinishReason.CANCELLED


def test_close_ends_every_stream(runner: GatedRunner) -> None:
    runner.gate.clear()
    executor = make_executor(runner)
    stream = Stream()
    executor.submit(make_request("a", [1], max_tokens=40), stream)
    closer = threading.Thread(target=executor.close)
    closer.start()
    runner.gate.set()
    closer.join(10)
    assert stream.finish()[1].finish_reason is FinishReason.CANCELLED


def submit_many(executor: StepExecutor, count: int) -> None:
    for i in range(count):
        executor.submit(make_request(f"r{i}", [1]), Stream())


def _refuses(executor: StepExecutor) -> bool:
    try:
        executor.submit(make_request("late", [1]), Stream())
    except ShuttingDown:
        return True
    return False


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never became true"
        time.sleep(0.005)
