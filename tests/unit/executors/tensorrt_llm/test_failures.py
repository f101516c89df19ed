"""What fails alone, what ends the engine, and that nobody is left waiting."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.eventually import eventually
from support.tensorrt_llm_engines import manifest_of, record_of, write_engine
from support.token_stream import TokenStream
from trierarch.builder.errors import EngineError, ResourceError
from trierarch.builder.manifest import Flow
from trierarch.python_backend.errors import ExecutorFailed
from trierarch.python_backend.executors import factory
from trierarch.python_backend.executors.tensorrt_llm import engine_loop, opening
from trierarch.python_backend.executors.tensorrt_llm.failures import Failure, judge
from trierarch.python_backend.request import FinishReason

FATAL = 77
MakeStandIn = Callable[..., Any]


def error_of(stream: TokenStream) -> tuple[FinishReason | None, type[Exception]]:
    _, last = stream.finish()
    return last.finish_reason, type(last.error)


@pytest.mark.parametrize("release", ["1.0", "1.2", "1.3"])
@pytest.mark.parametrize(
    "text", ["CUDA error: an illegal memory access was encountered", "Executor worker died", "something nobody foresaw"]
)
def test_a_dead_engine_ends_every_request_and_refuses_new_ones(stand_in: MakeStandIn, release: str, text: str) -> None:
    library = stand_in(release)
    library.controls.fatal, library.controls.fatal_text = FATAL, text
    executor = library.open()
    library.controls.gate.clear()
    streams = [library.ask(executor, prompt) for prompt in ([1, 2], [3, FATAL], [5, 6])]
    assert executor.is_healthy
    eventually(lambda: len(library.controls.submissions) == 3, "all three at the library")
    library.controls.gate.set()
    for stream in streams:
        assert error_of(stream) == (FinishReason.ERROR, ExecutorFailed)
    assert not executor.is_healthy
    with pytest.raises(ExecutorFailed, match=rf"{text}.* loaded anew"):
        executor.submit(library.request([1]), TokenStream())
    assert executor.stats().num_active_requests == 0
    assert executor.drain(timeout=0)


@pytest.mark.parametrize("release", ["1.2", "1.3"])
def test_processes_that_are_gone_are_noticed_though_nobody_hears_of_them(
    stand_in: MakeStandIn, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    monkeypatch.setattr(engine_loop, "WATCH_SECONDS", 0.01)
    library = stand_in(release)
    executor = library.open()
    library.controls.gate.clear()
    stream = library.ask(executor, [1, 2])
    library.controls.is_dead = True
    assert error_of(stream) == (FinishReason.ERROR, ExecutorFailed)
    assert not executor.is_healthy


def test_an_engine_that_makes_no_step_is_taken_for_dead(stand_in: MakeStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_loop, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(engine_loop, "STALL_SECONDS", 0.2)
    # Else a host that stalls for as long is taken for a call that does not return.
    monkeypatch.setattr(engine_loop.EngineLoop, "_is_stuck", lambda self: False)
    library = stand_in("1.0")
    executor = library.open()
    library.controls.gate.clear()
    stream = library.ask(executor, [1, 2])
    _, last = stream.finish()
    assert "has made no step for 0.2 s" in str(last.error)
    assert not executor.is_healthy


def test_a_call_that_does_not_return_keeps_nobody_waiting(
    stand_in: MakeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 1.2 a request waits for an answer of a process that may be gone."""
    monkeypatch.setattr(engine_loop, "WATCH_SECONDS", 0.01)
    library = stand_in("1.2")
    executor = library.open()
    library.controls.gate.clear()
    running = library.ask(executor, [1, 2])
    eventually(lambda: len(library.controls.submissions) == 1, "the first at the library")
    library.controls.submission_hangs = True
    streams = [running, library.ask(executor, [3, 4]), library.ask(executor, [5, 6])]
    monkeypatch.setattr(engine_loop, "STALL_SECONDS", 0.2)
    for stream in streams:
        assert error_of(stream) == (FinishReason.ERROR, ExecutorFailed)
    assert not executor.is_healthy
    with pytest.raises(ExecutorFailed):
        executor.submit(library.request([1]), TokenStream())
    executor.close()
    library.controls.submission_hangs = False
    assert all(stream.deltas.empty() for stream in streams)


def test_an_idle_engine_is_not_taken_for_dead(stand_in: MakeStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the time that it idled, when a request comes."""
    monkeypatch.setattr(engine_loop, "WATCH_SECONDS", 0.001)
    library = stand_in("1.0")
    executor = library.open()
    library.ask(executor, [1, 2]).finish()
    loop = executor._loop
    loop._last_step_ns -= int(2e9 * engine_loop.STALL_SECONDS)  # so long ago
    library.controls.gate.clear()
    stream = library.ask(executor, [1, 2])
    eventually(lambda: len(library.controls.submissions) == 2, "the second at the library")
    sent = time.monotonic_ns()
    eventually(lambda: loop._last_turn_ns > sent, "a look at it")
    assert executor.is_healthy
    library.controls.gate.set()
    stream.finish()
    assert executor.is_healthy


def test_a_library_that_does_not_stop_is_left_behind(stand_in: MakeStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_loop, "SHUTDOWN_SECONDS", 0.05)
    library = stand_in()
    executor = library.open()
    library.controls.shutdown_hangs = True
    executor.close()
    assert not executor.is_healthy


def test_an_argument_that_the_library_refuses_fails_its_own_request(stand_in: MakeStandIn) -> None:
    library = stand_in()
    executor = library.open()
    library.controls.poison = 50
    good = library.ask(executor, [1, 2])
    bad = library.ask(executor, [50])
    assert error_of(bad) == (FinishReason.ERROR, ExecutorFailed)
    assert good.finish()[1].finish_reason is FinishReason.LENGTH


def test_a_sink_that_raises_loses_nobody_elses_tokens(stand_in: MakeStandIn) -> None:
    library = stand_in()
    executor = library.open()

    def broken(delta: object) -> None:
        raise ZeroDivisionError("on purpose")

    executor.submit(library.request([1, 2]), broken)
    stream = library.ask(executor, [3, 4])
    assert stream.finish()[1].finish_reason is FinishReason.LENGTH
    eventually(lambda: executor.stats().num_active_requests == 0, "an end to both")
    assert executor.is_healthy


@pytest.mark.parametrize(
    "error, failure",
    [
        (RuntimeError("LoRA task 7 not found in cache. Please send LoRA weights with request"), Failure.NOT_CACHED),
        (RuntimeError("Cache is full. There are no done tasks to evict"), Failure.CACHE_FULL),
        (type("PeftTaskNotCachedException", (RuntimeError,), {})("7"), Failure.NOT_CACHED),
        (type("LoraCacheFullException", (RuntimeError,), {})(""), Failure.CACHE_FULL),
        (type("RequestError", (RuntimeError,), {})("the prompt is too long"), Failure.REQUEST),
        (type("RequestError", (RuntimeError,), {})("CUDA error: device-side assert triggered"), Failure.ENGINE),
        (ValueError("require top_k >= 0"), Failure.INVALID),
        (RuntimeError("LLM is shutting down"), Failure.ENGINE),
        (RuntimeError("anything else"), Failure.ENGINE),
    ],
)
def test_what_an_error_means(error: Exception, failure: Failure) -> None:
    assert judge(error) is failure


def test_an_engine_for_another_release_is_refused_before_anything_is_imported(stand_in: MakeStandIn) -> None:
    library = stand_in("1.3")
    manifest = manifest_of(record_of("1.2", Flow.ENGINE))
    imported = {name for name in sys.modules if name.startswith("tensorrt_llm")}
    with pytest.raises(EngineError, match=r"1\.2, and here is 1\.3.*trierarch build"):
        opening.open_tensorrt_llm(library.folder, manifest, None)
    assert {name for name in sys.modules if name.startswith("tensorrt_llm")} == imported
    assert library.controls.num_cuda_touches == 0


def test_the_device_is_touched_once_and_by_the_library_alone(stand_in: MakeStandIn) -> None:
    library = stand_in()
    executor = library.open(library.manifest(llm_args={"kv_cache_config": {"free_gpu_memory_fraction": 0.5}}))
    library.ask(executor, [1, 2]).finish()
    assert library.controls.num_cuda_touches == 1


@pytest.mark.parametrize(
    "said, kind", [("CUDA out of memory. Tried to allocate 2 GiB", ResourceError), ("bad plan file", EngineError)]
)
def test_an_engine_that_does_not_open_says_why(stand_in: MakeStandIn, said: str, kind: type[Exception]) -> None:
    library = stand_in()
    library.controls.opening_error = said
    with pytest.raises(kind, match=said):
        library.open()


@pytest.mark.parametrize(
    "changes, said",
    [({"tensorrt_llm": None}, "no record"), ({"version": "1.9"}, "1.0, 1.1, 1.2, 1.3")],
)
def test_a_record_that_is_none_is_told(stand_in: MakeStandIn, changes: dict[str, Any], said: str) -> None:
    library = stand_in()
    manifest = library.manifest()
    record = changes.get("tensorrt_llm", manifest.tensorrt_llm.model_copy(update=changes))
    with pytest.raises(EngineError, match=said):
        opening.open_tensorrt_llm(library.folder, manifest.model_copy(update={"tensorrt_llm": record}), None)


def test_the_factory_opens_it(stand_in: MakeStandIn, tmp_path: Path) -> None:
    library = stand_in()
    executor = factory.open_executor(write_engine(tmp_path / "engine", library.manifest()))
    library.executors.append(executor)
    assert library.ask(executor, [1, 2, 3]).finish()[0][:2] == [21, 85]


def test_what_was_ended_before_it_began_is_never_sent(stand_in: MakeStandIn) -> None:
    library = stand_in()
    executor = library.open()
    stream = TokenStream()
    request = library.request([1, 2])
    holder = threading.Event()
    executor._loop.post(holder.wait)  # the loop is busy while both arrive
    executor.submit(request, stream)
    executor.abort(request.request_id)
    holder.set()
    assert stream.finish()[1].finish_reason is FinishReason.CANCELLED
    assert not library.controls.submissions
