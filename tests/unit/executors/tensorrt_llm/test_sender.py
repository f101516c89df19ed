"""Sending a request again: with its adapter, a bounded number of times, and never once a token has come out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.memory_adapters import make_adapter
from support.tensorrt_llm_engines import manifest_of, record_of
from support.token_stream import TokenStream
from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.tensorrt_llm import sender as sender_module
from trierarch.python_backend.executors.tensorrt_llm.disk_adapter import DiskAdapter
from trierarch.python_backend.executors.tensorrt_llm.failures import CACHE_FULL, NOT_CACHED
from trierarch.python_backend.executors.tensorrt_llm.sender import MAX_ATTEMPTS, Sender
from trierarch.python_backend.executors.tensorrt_llm.stream import Shape, Stream
from trierarch.python_backend.request import Request, SamplingParams


class FlakyLibrary:
    """Fails as often as it is told to, after some tokens; then answers."""

    def __init__(self, error: str, num_failures: int, num_tokens: int = 0) -> None:
        self.error, self.num_failures, self.num_tokens = error, num_failures, num_tokens
        self.task_ids: list[int] = []

    def lora_request(self, name: str, task_id: int, path: Path) -> int:
        return task_id

    def generate(self, llm: Any, request: Request, sampling: Any, lora_request: int, salt: str) -> AsyncIterator[Any]:
        self.task_ids.append(lora_request)
        return self._steps(len(self.task_ids) <= self.num_failures)

    async def _steps(self, fails: bool) -> AsyncIterator[Any]:
        for count in range(1, 1 + (self.num_tokens if fails else 3)):
            reason = "length" if count == 3 and not fails else None
            completion = SimpleNamespace(
                token_ids=[5] * count, logprobs=None, finish_reason=reason, request_perf_metrics=None
            )
            yield SimpleNamespace(outputs=[completion], finished=reason is not None)
        if fails:
            raise RuntimeError(self.error)


class OneAdapter:
    """A line in which there is always room; counts who holds it."""

    def __init__(self, disk: DiskAdapter) -> None:
        self.disk, self.num_holders = disk, 0

    async def acquire(self, adapter: object) -> ActiveAdapter:
        self.num_holders += 1
        return ActiveAdapter("digest", 1, self.disk)

    def release(self, active: ActiveAdapter) -> None:
        self.num_holders -= 1


def carry(library: FlakyLibrary, tmp_path: Path) -> tuple[TokenStream, OneAdapter]:
    line = OneAdapter(DiskAdapter(tmp_path / "gone", 0, iter(range(1, 99))))
    sender = Sender(library, manifest_of(record_of("1.2")), line, salts_prompts=False)  # type: ignore[arg-type]
    sink = TokenStream()
    request = Request(
        request_id="r",
        prompt_token_ids=(1, 2),
        sampling=SamplingParams(max_tokens=3, temperature=0.0),
        adapter=make_adapter("a"),
        arrival_time=0.0,
    )
    stream = Stream(request, 0, (), sink, Shape(block_size=4, vocab_size=97), lambda ended: None)
    try:
        asyncio.run(sender.carry(SimpleNamespace(), stream, lambda: None))  # type: ignore[arg-type]
    finally:
        assert line.num_holders == 0
    return sink, line


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "_FIRST_PAUSE_SECONDS", 0.0)


def test_it_is_sent_again_under_its_own_number_and_then_under_others(tmp_path: Path) -> None:
    library = FlakyLibrary(f"LoRA task 1 {NOT_CACHED}", 3)
    sink, _ = carry(library, tmp_path)
    assert sink.finish()[0] == [5, 5, 5]
    assert library.task_ids == [1, 1, 2, 3]


def test_a_full_cache_is_waited_for_under_the_same_number(tmp_path: Path) -> None:
    library = FlakyLibrary(CACHE_FULL, MAX_ATTEMPTS - 1)
    sink, _ = carry(library, tmp_path)
    assert sink.finish()[0] == [5, 5, 5]
    assert set(library.task_ids) == {1}


@pytest.mark.parametrize(
    "library, num_attempts",
    [
        (FlakyLibrary(NOT_CACHED, MAX_ATTEMPTS), MAX_ATTEMPTS),
        (FlakyLibrary(NOT_CACHED, 1, num_tokens=1), 1),
        (FlakyLibrary("anything else", 1), 1),
    ],
    ids=["too often", "after a token", "for another reason"],
)
def test_what_is_not_sent_again(library: FlakyLibrary, num_attempts: int, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=library.error):
        carry(library, tmp_path)
    assert len(library.task_ids) == num_attempts
