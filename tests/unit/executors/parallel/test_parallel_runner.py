"""Ranks that are processes: what they draw, and what becomes of everybody when one is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from support.adapted_answers import answers
from support.eventually import eventually
from support.packed_adapters import taking_adapters, write_random_packed
from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_engine
from support.stepping import Stepper
from support.threaded_ranks import CPU, split
from support.token_stream import TokenStream
from trierarch.builder.errors import EngineError, ResourceError
from trierarch.builder.manifest import MANIFEST_NAME, DrafterKind, EngineManifest, Pooling, Speculation
from trierarch.python_backend.errors import ExecutorFailed
from trierarch.python_backend.executors.executor import Executor
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.executors.parallel import devices
from trierarch.python_backend.executors.parallel.crew import Crew
from trierarch.python_backend.executors.parallel.messages import Drop, Identity, Loaded, Open
from trierarch.python_backend.executors.parallel.runner import ParallelRunner
from trierarch.python_backend.executors.runner import RunnerLost
from trierarch.python_backend.executors.torch.runner import TorchRunner
from trierarch.python_backend.request import FinishReason, Request, SamplingParams, TokenDelta
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence, StepOutput

PROMPTS = [[7], [3, 4, 5, 6, 7], list(range(2, 40))]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two ranks; it takes adapters, guesses, and makes embeddings."""
    folder = tmp_path_factory.mktemp("engine")
    architecture = tiny_architecture(qk_norm=True, qkv_bias=True)
    manifest = tiny_manifest(architecture, max_num_tokens=16)
    speculation = Speculation(drafters=(DrafterKind.PROMPT_LOOKUP,), max_draft_tokens=4)
    manifest = manifest.model_copy(update={"speculation": speculation, "pooling": Pooling.MEAN})
    write_engine(folder, manifest, random_weights(architecture))
    manifest = split(taking_adapters(manifest, folder, max_adapters=2), 2)
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return folder


def whole(manifest: EngineManifest) -> EngineManifest:
    """The same engine in one process."""
    return manifest.model_copy(update={"parallel": None})


@contextmanager
def opened(engine: Path, *adapter_directories: Path) -> Iterator[tuple[Executor, psutil.Process]]:
    """An executor, and the process of its rank 1, which is gone when it is closed."""
    before = set(psutil.Process().children())
    executor = open_executor(engine, adapter_directories=adapter_directories)
    try:
        (rank,) = set(psutil.Process().children()) - before
        yield executor, rank
    finally:
        executor.close()
    assert not rank.is_running()


def request_of(request_id: str, max_tokens: int) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, end_ids=())
    return Request(request_id=request_id, prompt_token_ids=(3, 4), sampling=sampling, arrival_time=time.monotonic())


@pytest.fixture(scope="module")
def runner(engine: Path) -> Iterator[ParallelRunner]:
    """One pair of processes for all that leave it whole."""
    runner = ParallelRunner(engine, EngineManifest.load(engine))
    (pid,) = runner.pids
    yield runner
    runner.close()
    runner.close()
    assert not psutil.pid_exists(pid)


def test_draws_what_one_process_draws(engine: Path, runner: ParallelRunner) -> None:
    manifest = EngineManifest.load(engine)
    drawn = [
        Stepper.open(manifest, one).generate(PROMPTS, max_tokens=8, temperature=temperature, seed=5)
        for one in (TorchRunner(engine, whole(manifest), CPU), runner)
        for temperature in (0.0, 0.9)
    ]
    assert drawn[:2] == drawn[2:]


def test_embeddings_are_those_of_one_process(engine: Path, runner: ParallelRunner) -> None:
    manifest = EngineManifest.load(engine)
    pooled = []
    for one in (TorchRunner(engine, whole(manifest), CPU), runner):
        stepper = Stepper.open(manifest, one)
        stepper.add([3, 4, 5, 6, 7], max_tokens=1, return_embedding=True)
        plan = stepper.scheduler.schedule()
        (output,) = one.run(plan).outputs.values()
        pooled.append(output.pooled)
        stepper.scheduler.update(plan, StepOutput({plan.scheduled[0].sequence.sequence_id: output}))
    assert pooled[0] is not None
    np.testing.assert_allclose(pooled[1], pooled[0], atol=1e-5)


def test_a_plan_that_cannot_be_computed_concerns_nobody_else(engine: Path, runner: ParallelRunner) -> None:
    stepper = Stepper.open(EngineManifest.load(engine), runner)
    stepper.add([1, 2, 3])
    plan = stepper.scheduler.schedule()
    (item,) = plan.scheduled
    bad = replace(item.sequence, block_table=[])
    with pytest.raises(ValueError, match="has 0 of 1 blocks"):
        runner.run(Plan((ScheduledSequence(bad, 0, 3, samples=True),)))
    assert len(runner.run(plan).outputs[item.sequence.sequence_id].token_ids) == 1


def test_a_step_without_sequences_is_nothing(runner: ParallelRunner) -> None:
    assert runner.run(Plan((), (1, 2))).outputs == {}


def test_an_executor_of_ranks_answers_with_adapters_until_one_is_killed(engine: Path, tmp_path: Path) -> None:
    manifest = EngineManifest.load(engine)
    for seed, name in enumerate(("a", "b")):
        write_random_packed(tmp_path, name, manifest, seed=seed, strength=4.0)
    running, behind, is_killed = TokenStream(), TokenStream(), threading.Event()

    def held(delta: TokenDelta) -> None:
        running(delta)
        is_killed.wait(60)

    with opened(engine, tmp_path) as (executor, rank):
        names = ("", "a", "b", "a")
        alone = [one for name in names for one in answers(executor, [name])]
        assert answers(executor, names) == alone
        assert len({tuple(output) for output in alone}) > len(names)
        executor.submit(request_of("running", 60), held)
        executor.submit(request_of("behind", 60), behind)
        running.next()
        rank.kill()
        is_killed.set()
        for stream in (running, behind):
            _, last = stream.finish()
            assert last.finish_reason is FinishReason.ERROR
            assert isinstance(last.error, ExecutorFailed)
            assert str(last.error) == f"rank 1 of 2 (process {rank.pid}) has ended: signal 9"
        assert not executor.is_healthy
        with pytest.raises(ExecutorFailed, match=r"the engine is lost, .*: rank 1 of 2"):
            executor.submit(request_of("late", 1), TokenStream())


def test_a_rank_that_hangs_is_not_waited_for(engine: Path) -> None:
    runner = ParallelRunner(engine, EngineManifest.load(engine), stall_seconds=1.0)
    lost: list[str] = []
    runner.watch(lost.append)
    stepper = Stepper.open(EngineManifest.load(engine), runner)
    stepper.add([1, 2, 3])
    os.kill(runner.pids[0], signal.SIGSTOP)
    message = "a step over 2 ranks has not ended for 1 s"
    with pytest.raises(RunnerLost, match=message):
        stepper.step()
    with pytest.raises(RunnerLost, match=message):
        runner.run(stepper.scheduler.schedule())
    eventually(lambda: lost == [message], "whoever watches is told")
    runner.close()


def test_ranks_whose_blocks_do_not_come_back_are_not_waited_for() -> None:
    crew = Crew(2, stall_seconds=0.0)
    lost: list[str] = []
    crew.listen(lost.append)
    try:
        crew.wait_for("the return of cached blocks")
        eventually(lambda: bool(lost), "whoever waits for them is told")
    finally:
        crew.close()
    assert lost == ["the return of cached blocks over 2 ranks has not ended for 0 s"]


def test_a_rank_that_is_lost_between_requests_makes_the_executor_unhealthy(engine: Path) -> None:
    with opened(engine) as (executor, rank):
        assert executor.is_healthy
        rank.kill()
        eventually(lambda: not executor.is_healthy, "the executor is unhealthy")


@pytest.mark.parametrize(
    "is_foreign, error, message",
    [
        (True, EngineError, r"^rank 1 of 2: .* was replaced while it was loaded: load it again$"),
        (False, ResourceError, r"^rank 1 of 2: AssertionError: nothing is open$"),
    ],
    ids=["another engine than rank 0 has", "a bug"],
)
def test_a_rank_that_fails_says_why_and_is_of_no_more_use(
    engine: Path, is_foreign: bool, error: type[Exception], message: str
) -> None:
    identity = replace(Identity.of(engine), weights=(0, 0, 0))
    crew = Crew(2, 60.0)
    try:
        crew.tell(Open(1, engine, EngineManifest.load(engine), "cpu", 1, identity) if is_foreign else Drop((1,)))
        with pytest.raises(error, match=message):
            crew.answers(Loaded)
        with pytest.raises(RunnerLost, match=message):
            crew.tell(Drop(()))
    finally:
        crew.close()
    assert crew.pids == ()


ORPHANS = """
import time
from trierarch.python_backend.executors.parallel.worker_process import WorkerProcess

worker = WorkerProcess(1)
print(worker.pid, flush=True)
time.sleep(600)
"""


def test_ranks_end_with_the_process_that_started_them() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        rank = psutil.Process(int(parent.stdout.readline()))
        assert rank.is_running()
        parent.kill()
    eventually(lambda: not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE, "the rank ends")


def test_what_cannot_be_split_is_refused_with_the_numbers(engine: Path) -> None:
    manifest = EngineManifest.load(engine)
    with pytest.raises(EngineError, match=r"tiny cannot be split: tensor_parallel_size is 3: .* has 4 attention heads"):
        ParallelRunner(engine, split(manifest, 3))
    with pytest.raises(EngineError, match=r"its head reads hidden states of layers that other stages have"):
        ParallelRunner(engine, split(manifest, 1, 2), taps=(1,))


def test_too_few_gpus_are_counted(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    manifest = EngineManifest.load(engine)
    assert devices.rank_devices(split(manifest, 2), 2) == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(ResourceError, match=r"is split over 4 GPUs .*2 × .* 2\), and 2 can be seen here: give it 4"):
        devices.rank_devices(split(manifest, 2, 2), 4)
