from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.eventually import eventually
from trierarch.benchmarks.paths import IMPORT_PATH
from trierarch.benchmarks.subjects import worker
from trierarch.benchmarks.subjects.subject import SubjectFailed
from trierarch.benchmarks.subjects.variant import Variant
from trierarch.benchmarks.subjects.worker import Launch, WorkerSubject
from trierarch.benchmarks.workers.protocol import Steering

# A worker that repeats the prompt's first token, and misbehaves when that is asked for by token.
ECHO = """
import os, subprocess, sys, time
from trierarch.benchmarks.workers.protocol import Ready, serve

SHORT, FAIL, DIE, HANG, STEERED = 1, 2, 3, 4, 5

class Echo:
    def __init__(self, model):
        print("noise on standard output")
        if model.name == "missing":
            raise FileNotFoundError(model.name)
        self.child = subprocess.Popen(["sleep", "600"])
        self.ready = Ready("7.0", {"model": model.name, "child": self.child.pid})

    def steer(self, steering):
        self.steering = steering

    def generate(self, prompts, num_output_tokens):
        print("more noise")
        first = prompts[0][0]
        if first == STEERED:
            return [[int(self.steering.speculation == "adaptive"), len(self.steering.tenant)]]
        if first == FAIL:
            raise ValueError("no such token")
        if first == DIE:
            os._exit(1)
        if first == HANG:
            time.sleep(600)
        return [[prompt[0]] * (num_output_tokens - (first == SHORT)) for prompt in prompts]

    def close(self):
        pass  # leaves its child to whoever cleans up

serve(Echo)
"""
SHORT, FAIL, DIE, HANG, STEERED = 1, 2, 3, 4, 5


def launch(folder: Path, model: str = "model") -> Launch:
    (folder / "echo_worker.py").write_text(ECHO, encoding="utf-8")
    environment = {"PYTHONPATH": f"{IMPORT_PATH}:{folder}"}
    return Launch(
        name="echo", python=Path(sys.executable), module="echo_worker", model=Path(model), environment=environment
    )


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerSubject]:
    monkeypatch.setattr(worker, "OUT", tmp_path / "out")
    subject = WorkerSubject(launch(tmp_path))
    yield subject
    subject.close()


def test_a_worker_answers_whatever_its_engine_prints(subject: WorkerSubject, tmp_path: Path) -> None:
    ready = subject.start()
    timing = subject.generate([[10, 11], [20]], 3)

    assert (ready.version, ready.settings["model"]) == ("7.0", "model")
    assert timing.token_ids == ([10, 10, 10], [20, 20, 20])
    assert timing.num_tokens == 6
    assert timing.seconds >= 0
    assert "noise on standard output" in (tmp_path / "out" / "logs" / "echo.log").read_text()


@pytest.mark.parametrize(
    ("steering", "heard"), [(None, [1, 0]), (Steering("adaptive", "abc"), [1, 3]), (Steering(4, "ab"), [0, 2])]
)
def test_a_worker_is_steered_for_one_call(subject: WorkerSubject, steering: Steering | None, heard: list[int]) -> None:
    subject.start()
    subject.generate([[10]], 1, Steering(8, "another"))

    assert subject.generate([[STEERED]], 2, steering).token_ids == (heard,)


def test_variants_share_a_worker_but_no_tenant(subject: WorkerSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Steering] = []
    generate = subject.generate
    monkeypatch.setattr(subject, "generate", lambda *call: heard.append(call[2]) or generate(*call))
    variants = [Variant("a", subject, "adaptive"), Variant("b", subject, 0)]

    assert variants[0].start() == variants[1].start()
    assert variants[0].pids == variants[1].pids != []
    for variant in (*variants, variants[0]):
        assert variant.generate([[10]], 1).token_ids == ([10],)
    variants[0].generate([[11]], 1)

    assert [steering.speculation for steering in heard] == ["adaptive", 0, "adaptive", "adaptive"]
    of_a, of_b, again, of_other_prompt = (steering.tenant for steering in heard)
    assert of_a == again
    assert len({of_a, of_b, of_other_prompt}) == 3
    variants[1].close()
    assert variants[0].pids == []


def test_its_memory_and_age_are_known(subject: WorkerSubject) -> None:
    started = time.monotonic()
    subject.start()

    assert subject.peak_rss() > 1 << 20
    assert 0 < subject.seconds_since_start() <= time.monotonic() - started
    assert len(subject.pids) == 1


def test_closing_ends_what_the_worker_started(subject: WorkerSubject) -> None:
    child = subject.start().settings["child"]

    subject.close()
    subject.close()

    eventually(lambda: not is_alive(child), "what the worker started ends")
    assert subject.pids == []


@pytest.mark.parametrize(
    ("token", "message"), [(SHORT, "gave"), (FAIL, "ValueError: no such token"), (DIE, "ended or did not answer")]
)
def test_misbehaviour_is_told(subject: WorkerSubject, token: int, message: str) -> None:
    subject.start()

    with pytest.raises(SubjectFailed, match=message):
        subject.generate([[token]], 2)


def test_silence_ends(subject: WorkerSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    subject.start()
    monkeypatch.setattr(worker, "CALL_SECONDS", 0.1)

    with pytest.raises(SubjectFailed, match="did not answer within"):
        subject.generate([[HANG]], 2)


def test_a_model_that_does_not_load_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "OUT", tmp_path / "out")
    subject = WorkerSubject(launch(tmp_path, "missing"))

    with pytest.raises(SubjectFailed, match="FileNotFoundError: missing"):
        subject.start()
    subject.close()


def test_who_does_not_run_cannot_be_asked(subject: WorkerSubject) -> None:
    with pytest.raises(SubjectFailed, match="not running"):
        subject.generate([[5]], 1)
    with pytest.raises(SubjectFailed, match="not running"):
        subject.peak_rss()
