"""The loop with adapters in files: loaded beside the steps, replaced, deleted and damaged while requests run."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from support.eventually import eventually
from support.packed_adapters import random_packed, taking_adapters
from support.random_engine import tiny_architecture, tiny_manifest
from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.packed_adapter import write_packed
from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.adapters.cache import AdapterCache
from trierarch.python_backend.adapters.directory import AdapterDirectories
from trierarch.python_backend.adapters.pool import AdapterPool
from trierarch.python_backend.adapters.registry import AdapterRegistry
from trierarch.python_backend.adapters.stats import AdapterStatus
from trierarch.python_backend.errors import Cancelled, DeadlineExceeded, UnknownAdapter, UnusableAdapter
from trierarch.python_backend.executors.fake import FakeRunner, FakeWeights, next_token
from trierarch.python_backend.executors.loop import StepExecutor
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.request import FinishReason, Request, SamplingParams, TokenDelta
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.plan import Plan, StepOutput
from trierarch.python_backend.scheduling.scheduler import Scheduler

VOCAB, BLOCK_SIZE = 97, 4
ENGINE = taking_adapters(tiny_manifest(tiny_architecture()))
VERSIONS = [random_packed(ENGINE, pieces=("q",), rank=1, seed=seed) for seed in range(4)]
PROMPT = (1, 2, 3, 4, 5, 6)


class GatedRunner(FakeRunner):
    """Steps and loads wait at gates; arranging fails for the digests in `poison`."""

    def __init__(self) -> None:
        super().__init__(64, BLOCK_SIZE, VOCAB)
        self.steps, self.loads = threading.Event(), threading.Event()
        self.steps.set()
        self.loads.set()
        self.poison: set[str] = set()
        self.num_idle_steps = 0

    def run(self, plan: Plan) -> StepOutput:
        assert self.steps.wait(60)
        self.num_idle_steps += not plan.scheduled and not plan.finished_sequence_ids
        return super().run(plan)

    def arrange(self, tensors: AdapterTensors) -> FakeWeights:
        assert self.loads.wait(60)
        if tensors.manifest.digest in self.poison:
            raise MemoryError
        return super().arrange(tensors)


@dataclass
class Stream:
    """One request's deltas."""

    adapter: Adapter | None
    deltas: queue.SimpleQueue[TokenDelta] = field(default_factory=queue.SimpleQueue)

    def finish(self) -> tuple[list[int], TokenDelta]:
        """All token ids and the last delta."""
        tokens: list[int] = []
        while True:
            delta = self.deltas.get(timeout=60)
            tokens += delta.token_ids
            if delta.finish_reason is not None:
                return tokens, delta

    def is_right(self) -> bool:
        """Whether it has eight tokens of the version that it asked for."""
        shift = 0 if self.adapter is None else int(self.adapter.digest[:8], 16)
        context = list(PROMPT)
        for _ in range(8):
            context.append((next_token(context, 3, VOCAB) + shift) % VOCAB)
        tokens, last = self.finish()
        return tokens == context[len(PROMPT) :] and last.finish_reason is FinishReason.LENGTH


class Stage:
    """An executor over a directory."""

    def __init__(self, tmp_path: Path, max_adapters: int = 2, host_bytes: int = 10_000) -> None:
        (tmp_path / "engine").mkdir()
        self.shelf = tmp_path / "shelf"
        self.shelf.mkdir()
        self.runner = GatedRunner()
        directories = AdapterDirectories((self.shelf,), tmp_path / "engine", ENGINE)
        self.pool = AdapterPool(AdapterCache(host_bytes, self.runner.arrange), max_adapters)
        config = SchedulerConfig(max_batch_size=8, max_seq_len=64, max_num_tokens=64, max_queue_size=1000)
        scheduler = Scheduler(config, KVCacheManager(64, BLOCK_SIZE), (), adapters=self.pool)
        self.executor = StepExecutor(scheduler, self.runner, VOCAB, registry=AdapterRegistry(directories, self.pool))
        self._request_ids = count()

    def write(self, name: str, version: int = 0) -> str:
        """Put a version there; its digest."""
        write_packed(VERSIONS[version], self.shelf / f"{name}.safetensors")
        return VERSIONS[version].manifest.digest

    def ask(self, name: str = "", timeout: float | None = None, max_tokens: int = 8) -> Stream:
        adapter = self.executor.find_adapter(name) if name else None
        stream, now = Stream(adapter), time.monotonic()
        request = Request(
            request_id=str(next(self._request_ids)),
            prompt_token_ids=PROMPT,
            sampling=SamplingParams(max_tokens=max_tokens),
            adapter=adapter,
            arrival_time=now,
            deadline=None if timeout is None else now + timeout,
        )
        self.executor.submit(request, stream.deltas.put)
        return stream

    def status(self, name: str) -> AdapterStatus:
        return next(info.status for info in self.executor.adapters() if info.name == name)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.runner.steps.set()
    stage.runner.loads.set()
    stage.executor.close()


def test_adapters_and_the_base_model_side_by_side(stage: Stage) -> None:
    stage.write("a", 0)
    stage.write("b", 1)
    streams = [stage.ask(name) for name in ("a", "", "b", "a", "", "b")]
    assert all(stream.is_right() for stream in streams)


def test_an_engine_without_places_for_adapters_knows_none() -> None:
    config = SchedulerConfig(max_batch_size=8, max_seq_len=64, max_num_tokens=64, max_queue_size=8)
    executor = StepExecutor(Scheduler(config, KVCacheManager(64, BLOCK_SIZE), ()), GatedRunner(), VOCAB)
    with pytest.raises(UnknownAdapter, match="rebuild the engine with --max-adapters"):
        executor.find_adapter("a")
    assert executor.adapters() == ()
    assert executor.stats().adapters is None
    executor.close()


def test_a_slow_load_holds_up_nobody_else_and_no_step_is_made_for_nothing(stage: Stage) -> None:
    stage.write("a")
    stage.runner.loads.clear()
    slow = stage.ask("a")
    assert stage.ask().is_right()
    num_steps = stage.runner.num_steps
    time.sleep(0.1)
    assert stage.runner.num_steps - num_steps <= 1, "it waits, and does not spin"
    assert stage.status("a") is AdapterStatus.REGISTERED
    stats = stage.executor.stats().adapters
    assert stats is not None
    assert (stats.waiting, stats.running, stats.num_registered) == (("a",), (), 1)
    stage.runner.loads.set()
    assert slow.is_right()
    assert stage.runner.num_idle_steps <= 1


def test_a_deadline_comes_while_all_wait_for_a_load(stage: Stage) -> None:
    stage.write("a")
    stage.runner.loads.clear()
    late, patient = stage.ask("a", timeout=0.1), stage.ask("a")
    _, last = late.finish()
    assert isinstance(last.error, DeadlineExceeded)
    stage.runner.loads.set()
    assert patient.is_right()


def test_a_request_can_be_aborted_while_all_wait_for_a_load(stage: Stage) -> None:
    stage.write("a")
    stage.runner.loads.clear()
    stream = stage.ask("a")
    stage.executor.abort("0")
    _, last = stream.finish()
    assert isinstance(last.error, Cancelled)


def test_loading_begins_while_a_step_runs(stage: Stage) -> None:
    stage.write("a")
    stage.runner.steps.clear()
    base = stage.ask()
    eventually(lambda: stage.executor.stats().num_scheduled_requests == 1, "the base model runs")
    stream = stage.ask("a")
    eventually(lambda: stage.status("a") is AdapterStatus.LOADED, "a is loaded beside a step that does not end")
    stage.runner.steps.set()
    assert base.is_right()
    assert stream.is_right()


def test_replaced_and_deleted_while_requests_run_and_wait(stage: Stage) -> None:
    stage.write("a", 0)
    stage.runner.loads.clear()
    first = stage.ask("a")
    stage.write("a", 1)
    second = stage.ask("a")
    (stage.shelf / "a.safetensors").unlink()
    with pytest.raises(UnknownAdapter):
        stage.ask("a")
    stage.runner.loads.set()
    assert first.is_right()
    assert second.is_right()
    assert first.adapter is not None
    assert second.adapter is not None
    assert first.adapter.digest != second.adapter.digest
    stage.runner.steps.clear()
    stage.write("a", 2)
    running = stage.ask("a")
    eventually(lambda: stage.status("a") is AdapterStatus.ACTIVE, "a runs")
    assert stage.executor.adapters()[0].num_requests == 1
    (stage.shelf / "a.safetensors").unlink()
    assert stage.executor.adapters() == ()
    stage.runner.steps.set()
    assert running.is_right()


def test_one_that_is_damaged_in_place_ends_its_requests_and_others_go_on(stage: Stage) -> None:
    stage.write("a", 0)
    stage.write("b", 1)
    stage.runner.loads.clear()
    first, bad, good = stage.ask("b"), stage.ask("a"), stage.ask("b")
    with (stage.shelf / "a.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\xff" * 4)
    stage.runner.loads.set()
    _, last = bad.finish()
    assert last.finish_reason is FinishReason.ERROR
    assert isinstance(last.error, UnusableAdapter)
    assert str(stage.shelf) not in str(last.error)
    assert first.is_right()
    assert good.is_right()


def test_what_nobody_foresaw_ends_the_requests_of_one_adapter(stage: Stage) -> None:
    stage.runner.poison = {stage.write("a", 0)}
    _, last = stage.ask("a").finish()
    assert str(last.error) == "adapter 'a': it could not be loaded (MemoryError); see the server's log"
    (info,) = stage.executor.adapters()
    assert (info.status, info.reason) == (
        AdapterStatus.FAILED,
        "it could not be loaded (MemoryError); see the server's log",
    )
    assert stage.ask().is_right()


def test_what_cannot_be_opened_is_listed_with_the_reason(stage: Stage) -> None:
    digest = stage.write("a")
    (stage.shelf / "bad.safetensors").write_bytes(b"rubbish")
    good, bad = stage.executor.adapters()
    assert (good.name, good.digest, good.rank, good.status) == ("a", digest, 1, AdapterStatus.REGISTERED)
    assert good.num_bytes == (stage.shelf / "a.safetensors").stat().st_size
    assert (bad.name, bad.status, bad.digest) == ("bad", AdapterStatus.FAILED, "")
    assert bad.reason


def test_hundreds_of_adapters_and_requests_from_many_threads(tmp_path: Path) -> None:
    size = VERSIONS[0].num_bytes
    stage = Stage(tmp_path, max_adapters=3, host_bytes=6 * size)
    for number in range(40):
        tensors = random_packed(ENGINE, pieces=("q",), rank=1, seed=100 + number)
        write_packed(tensors, stage.shelf / f"a{number}.safetensors")

    def ask(number: int) -> Stream:
        stream = stage.ask(f"a{number // 4}" if number % 4 else "")
        stats = stage.executor.stats().adapters
        assert stats is not None
        assert stats.loaded_bytes <= 6 * size
        assert stats.num_active <= 3
        return stream

    with ThreadPoolExecutor(4) as clients:
        assert all(stream.is_right() for stream in clients.map(ask, range(160)))
    stats = stage.executor.stats().adapters
    assert stats is not None
    assert stats.num_loads >= 40
    assert stats.num_evictions >= 34
    assert stage.executor.drain(60.0)
    stage.executor.close()


def test_draining_waits_for_those_that_wait_for_a_load_and_closing_does_not(stage: Stage) -> None:
    stage.write("a")
    stage.runner.loads.clear()
    stream = stage.ask("a")
    drained: list[bool] = []
    drainer = threading.Thread(target=lambda: drained.append(stage.executor.drain(60.0)))
    drainer.start()
    stage.runner.loads.set()
    assert stream.is_right()
    drainer.join()
    assert drained == [True]


def test_closing_ends_those_that_wait_for_a_load(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.write("a")
    stage.runner.loads.clear()
    stream = stage.ask("a")
    closer = threading.Thread(target=stage.executor.close)
    closer.start()
    _, last = stream.finish()
    assert isinstance(last.error, Cancelled)
    stage.runner.loads.set()
    closer.join(60)
    assert not closer.is_alive()
