"""The executor protocol, held by each executor: what every sink sees, whatever happens.

The fake runner and the stand-in for TensorRT-LLM draw the same tokens.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from support.eventually import eventually
from support.late_runner import LateRunner
from support.tensorrt_llm_engines import manifest_of, record_of, write_engine
from support.tensorrt_llm_stand_in import importable, install
from support.token_stream import TokenStream
from trierarch.builder.manifest import Flow
from trierarch.python_backend.errors import Cancelled, ExecutorFailed, InvalidRequest, Overloaded, ShuttingDown
from trierarch.python_backend.executors.executor import Executor
from trierarch.python_backend.executors.fake import FakeRunner, next_token
from trierarch.python_backend.executors.loop import StepExecutor
from trierarch.python_backend.executors.tensorrt_llm import opening
from trierarch.python_backend.executors.tensorrt_llm.executor import TensorRTLLMExecutor
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.request import FinishReason, Request, SamplingParams, SpeculationParams
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.plan import Plan, StepOutput
from trierarch.python_backend.scheduling.scheduler import Scheduler

VOCAB = 97
BLOCK_SIZE = 4
LIMITS = {"max_batch_size": 4, "max_seq_len": 64}
QUEUE_SIZE = 8
POISON = 66


class Subject(ABC):
    """An executor, and the gate that each of its steps waits at."""

    executor: Executor
    gate: threading.Event

    @abstractmethod
    def poison(self) -> None:
        """Let requests with POISON in their prompts fail."""

    @abstractmethod
    def is_idle(self) -> bool:
        """Whether nothing is held below the executor."""

    @abstractmethod
    def settle(self) -> None:
        """Wait until all that was asked so far has been heard, and will be done however fast steps are."""

    @abstractmethod
    def has_heard_of_its_end(self) -> bool:
        """Whether `close` has got so far that no stream goes on, however fast steps are."""


class _GatedRunner(FakeRunner):
    def __init__(self) -> None:
        super().__init__(32, BLOCK_SIZE, VOCAB)
        self.gate = threading.Event()
        self.gate.set()
        self.is_poisonous = False

    def run(self, plan: Plan) -> StepOutput:
        assert self.gate.wait(60)
        if self.is_poisonous and any(POISON in item.sequence.request.prompt_token_ids for item in plan.scheduled):
            raise RuntimeError("poisoned")
        return super().run(plan)


class LoopSubject(Subject):
    """A StepExecutor."""

    executor: StepExecutor

    def is_idle(self) -> bool:
        return self.executor.stats().used_blocks == 0

    def settle(self) -> None:
        """It is heard at once, and done before the next step."""

    def has_heard_of_its_end(self) -> bool:
        return self.executor._is_closing


class StepSubject(LoopSubject):
    def __init__(self) -> None:
        self.runner = _GatedRunner()
        self.gate = self.runner.gate
        config = SchedulerConfig(**LIMITS, max_num_tokens=16, max_queue_size=QUEUE_SIZE)
        kv = KVCacheManager(self.runner.num_blocks, BLOCK_SIZE, True)
        self.executor = StepExecutor(Scheduler(config, kv, ()), self.runner, VOCAB)

    def poison(self) -> None:
        self.runner.is_poisonous = True


class LaunchingSubject(LoopSubject):
    """Steps are launched before those before them are collected; one that fails does so when it is collected."""

    def __init__(self) -> None:
        self.runner = LateRunner(32, BLOCK_SIZE, VOCAB)
        self.gate = self.runner.gate
        config = SchedulerConfig(**LIMITS, max_num_tokens=16, max_queue_size=QUEUE_SIZE)
        kv = KVCacheManager(self.runner.num_blocks, BLOCK_SIZE, True)
        self.executor = StepExecutor(Scheduler(config, kv, ()), self.runner, VOCAB, launcher=self.runner)

    def poison(self) -> None:
        def check(plan: Plan) -> None:
            if any(POISON in item.sequence.request.prompt_token_ids for item in plan.scheduled):
                raise RuntimeError("poisoned")

        self.runner.at_collect = check


class TensorRTLLMSubject(Subject):
    def __init__(self, controls: ModuleType, engine: Path, release: str, flow: Flow) -> None:
        self.controls = controls.controls
        self.gate = self.controls.gate
        manifest = manifest_of(record_of(release, flow), **LIMITS, max_queue_size=QUEUE_SIZE)
        self.executor: TensorRTLLMExecutor = opening.open_tensorrt_llm(write_engine(engine, manifest), manifest, None)

    def poison(self) -> None:
        self.controls.poison = POISON

    def is_idle(self) -> bool:
        (llm,) = self.controls.llms
        return llm._engine.num_live == 0 and self.executor.stats().num_active_requests == 0

    def settle(self) -> None:
        # A request begins in one turn of the loop, meets its deadline in the next, and ends in a third.
        for _ in range(5):
            has_turned = threading.Event()
            self.executor._loop.post(has_turned.set)
            assert has_turned.wait(60)

    def has_heard_of_its_end(self) -> bool:
        return self.executor.stats().num_active_requests == 0


_installed = opening.installed
FLOWS = [
    ("1.0", Flow.ENGINE),
    ("1.2", Flow.ENGINE),
    ("1.0", Flow.PYTORCH),
    ("1.2", Flow.PYTORCH),
    ("1.3", Flow.PYTORCH),
]


@pytest.fixture(
    params=[StepSubject, LaunchingSubject, *FLOWS],
    ids=["steps", "launched steps", *(f"{release}-{flow}" for release, flow in FLOWS)],
)
def subject(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    if isinstance(request.param, type):
        steps = request.param()
        yield steps
        steps.gate.set()
        steps.executor.close()
        return
    release, flow = request.param
    with importable(install(tmp_path / "site", release)) as controls:
        monkeypatch.setattr(opening, "installed", lambda: replace(_installed(), gpu_architectures=("sm_90",)))
        library = TensorRTLLMSubject(controls, tmp_path / "engine", release, flow)
        yield library
        library.gate.set()
        library.executor.close()
        assert not library.controls.llms, "the library was not shut down"


def make_request(request_id: str, prompt: list[int], max_tokens: int = 8, n: int = 1) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(max_tokens=max_tokens, n=n, temperature=0.0),
        arrival_time=time.monotonic(),
    )


def expected(prompt: list[int], count: int) -> list[int]:
    context = list(prompt)
    for _ in range(count):
        context.append(next_token(context, 3, VOCAB))
    return context[len(prompt) :]


def test_streams_the_tokens_that_can_be_worked_out_by_hand(subject: Subject) -> None:
    # sum(1, 2, 3) * 3 + 3 = 21; sum(1, 2, 3, 21) * 3 + 4 = 85
    stream = TokenStream()
    subject.executor.submit(make_request("a", [1, 2, 3], max_tokens=2), stream)
    tokens, last = stream.finish()
    assert tokens == [21, 85]
    assert last.finish_reason is FinishReason.LENGTH
    usage = last.usage
    assert usage is not None
    assert (usage.num_prompt_tokens, usage.num_output_tokens) == (3, 2)
    assert usage.arrival_ns <= usage.first_scheduled_ns <= usage.first_token_ns <= usage.last_token_ns


def test_many_requests_at_once_give_what_each_gives_alone(subject: Subject) -> None:
    prompts = {f"r{i}": [i, i + 1, *range(i)] for i in range(1, 8)}
    streams = {request_id: TokenStream() for request_id in prompts}
    for request_id, prompt in prompts.items():
        subject.executor.submit(make_request(request_id, prompt), streams[request_id])
    for request_id, prompt in prompts.items():
        assert streams[request_id].finish()[0] == expected(prompt, 8)


def test_all_n_sequences_end_and_the_id_is_free_again(subject: Subject) -> None:
    for _ in range(2):
        stream = TokenStream()
        subject.executor.submit(make_request("same", [5, 6, 7, 8, 9], n=3), stream)
        assert set(stream.endings(3)) == {0, 1, 2}


def test_an_id_in_use_is_refused_and_its_request_goes_on(subject: Subject) -> None:
    subject.gate.clear()
    first = TokenStream()
    subject.executor.submit(make_request("a", [1, 2]), first)
    with pytest.raises(InvalidRequest, match="request_id"):
        subject.executor.submit(make_request("a", [3, 4]), TokenStream())
    subject.gate.set()
    assert first.finish()[0] == expected([1, 2], 8)


def test_abort_ends_one_request_and_frees_what_it_held(subject: Subject) -> None:
    subject.gate.clear()
    gone, stays = TokenStream(), TokenStream()
    subject.executor.submit(make_request("gone", [1, 2], max_tokens=40), gone)
    subject.executor.submit(make_request("stays", [3, 4]), stays)
    subject.executor.abort("gone")
    subject.executor.abort("never heard of it")
    subject.settle()
    subject.gate.set()
    _, last = gone.finish()
    assert last.finish_reason is FinishReason.CANCELLED
    assert isinstance(last.error, Cancelled)
    assert stays.finish()[0] == expected([3, 4], 8)
    eventually(subject.is_idle, "everything given back")


def test_one_of_n_sequences_can_be_aborted_alone(subject: Subject) -> None:
    subject.gate.clear()
    stream = TokenStream()
    subject.executor.submit(make_request("a", [5, 6, 7], n=2), stream)
    subject.executor.abort("a", index=1)
    subject.settle()
    subject.gate.set()
    assert stream.reasons(2) == {0: FinishReason.LENGTH, 1: FinishReason.CANCELLED}


def test_only_the_culprit_of_a_failure_ends(subject: Subject) -> None:
    subject.gate.clear()
    subject.poison()
    bad, good = TokenStream(), TokenStream()
    subject.executor.submit(make_request("good", [3, 4]), good)
    subject.executor.submit(make_request("bad", [1, POISON]), bad)
    subject.gate.set()
    _, last = bad.finish()
    assert last.finish_reason is FinishReason.ERROR
    assert isinstance(last.error, ExecutorFailed)
    assert good.finish()[0] == expected([3, 4], 8)
    assert subject.executor.is_healthy


def test_a_deadline_ends_a_request_that_still_runs(subject: Subject) -> None:
    timely, late = TokenStream(), TokenStream()
    subject.gate.clear()
    request = make_request("late", [1, 2], max_tokens=40)
    subject.executor.submit(replace(request, deadline=time.monotonic()), late)
    subject.executor.submit(make_request("timely", [3, 4]), timely)
    subject.settle()
    subject.gate.set()
    assert late.finish()[1].finish_reason is FinishReason.TIMEOUT
    assert timely.finish()[0] == expected([3, 4], 8)
    eventually(subject.is_idle, "everything given back")


def test_a_full_queue_answers_at_once(subject: Subject) -> None:
    subject.gate.clear()
    streams: list[TokenStream] = []

    def fill() -> None:
        for number in range(LIMITS["max_batch_size"] + QUEUE_SIZE + 2):
            stream = TokenStream()
            subject.executor.submit(make_request(f"r{number}", [1]), stream)
            streams.append(stream)

    with pytest.raises(Overloaded):
        fill()
    assert len(streams) >= QUEUE_SIZE
    subject.gate.set()
    for stream in streams:
        assert stream.finish()[0] == expected([1], 8)


def test_a_bad_request_is_refused_and_leaves_nothing_behind(subject: Subject) -> None:
    draft = SpeculationParams(draft_token_ids=(1, VOCAB))
    bad = [
        make_request("long", [1] * 60, max_tokens=5),
        make_request("empty", []),
        make_request("foreign", [VOCAB]),
        replace(make_request("guess", [1]), speculation=draft),
        replace(make_request("urgent", [1]), priority=101),
        replace(make_request("bias", [1]), sampling=SamplingParams(max_tokens=1, logit_bias={VOCAB: 1.0})),
    ]
    for request in bad:
        with pytest.raises(InvalidRequest):
            subject.executor.submit(request, TokenStream())
    assert subject.executor.drain(timeout=0.0)


def test_drain_lets_running_requests_finish_and_refuses_new_ones(subject: Subject) -> None:
    subject.gate.clear()
    stream = TokenStream()
    subject.executor.submit(make_request("a", [1]), stream)
    drained: list[bool] = []
    drainer = threading.Thread(target=lambda: drained.append(subject.executor.drain(timeout=60)))
    drainer.start()

    def refuses() -> bool:
        try:
            subject.executor.submit(make_request("late", [1]), TokenStream())
        except InvalidRequest:  # the one before it was taken
            return False
        except ShuttingDown:
            return True
        return False

    eventually(refuses, "a refusal")
    subject.gate.set()
    drainer.join(60)
    assert drained == [True]
    assert stream.finish()[0] == expected([1], 8)


def test_drain_cancels_what_does_not_finish_in_time(subject: Subject) -> None:
    subject.gate.clear()
    stream = TokenStream()
    subject.executor.submit(make_request("slow", [1], max_tokens=40), stream)
    assert not subject.executor.drain(timeout=0.05)
    subject.settle()
    subject.gate.set()
    assert stream.finish()[1].finish_reason is FinishReason.CANCELLED


def test_close_ends_every_stream_and_may_be_called_again(subject: Subject) -> None:
    subject.gate.clear()
    stream = TokenStream()
    subject.executor.submit(make_request("a", [1], max_tokens=40), stream)
    closer = threading.Thread(target=subject.executor.close)
    closer.start()
    eventually(subject.has_heard_of_its_end, "word of the end")
    subject.gate.set()
    closer.join(60)
    assert not closer.is_alive()
    assert stream.finish()[1].finish_reason is FinishReason.CANCELLED
    with pytest.raises(ShuttingDown):
        subject.executor.submit(make_request("b", [1]), TokenStream())
