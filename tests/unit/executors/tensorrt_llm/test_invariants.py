"""Whatever is asked and given up in whatever order: each stream ends once, and nothing is left anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.eventually import eventually
from support.packed_adapters import write_random_packed
from support.token_stream import TokenStream
from trierarch.builder.manifest import Lora
from trierarch.python_backend.adapters.directory import AdapterDirectories
from trierarch.python_backend.errors import InvalidRequest, Overloaded
from trierarch.python_backend.executors.tensorrt_llm.executor import TensorRTLLMExecutor
from trierarch.python_backend.request import FinishReason, SamplingParams

NUM_ADAPTERS = 4


@dataclass(frozen=True)
class Ask:
    """A request, and what becomes of it."""

    prompt: list[int]
    max_tokens: int
    n: int
    adapter: int | None
    seconds: float | None
    """To its deadline."""
    abort: int | None
    """Which of its sequences is given up; -1 is all."""


ASKS = st.lists(
    st.builds(
        Ask,
        prompt=st.lists(st.integers(0, 96), max_size=6),
        max_tokens=st.integers(1, 12),
        n=st.integers(1, 3),
        adapter=st.none() | st.integers(0, NUM_ADAPTERS - 1),
        seconds=st.sampled_from([None, None, 0.0, 0.01]),
        abort=st.sampled_from([None, None, -1, 0, 1]),
    ),
    max_size=14,
)


class Crowd:
    """Asks of one executor, and what their sinks saw."""

    def __init__(self, library: Any, executor: TensorRTLLMExecutor) -> None:
        self.library, self.executor = library, executor
        self.streams: list[tuple[Ask, TokenStream]] = []
        self.adapters = [executor.find_adapter(f"a{number}") for number in range(NUM_ADAPTERS)]

    def ask(self, ask: Ask) -> None:
        request = self.library.request(
            ask.prompt,
            SamplingParams(max_tokens=ask.max_tokens, n=ask.n, seed=1),
            adapter=None if ask.adapter is None else self.adapters[ask.adapter],
            deadline=None if ask.seconds is None else time.monotonic() + ask.seconds,
        )
        stream = TokenStream()
        try:
            self.executor.submit(request, stream)
        except InvalidRequest:
            assert not ask.prompt
            return
        except Overloaded:
            return
        self.streams.append((ask, stream))
        if ask.abort is not None:
            self.executor.abort(request.request_id, None if ask.abort == -1 else ask.abort)

    def check(self) -> None:
        for ask, stream in self.streams:
            for index, last in stream.endings(ask.n).items():
                assert last.usage is not None
                is_given_up = ask.abort == -1 or ask.abort == index
                expected = {FinishReason.LENGTH} | ({FinishReason.CANCELLED} if is_given_up else set())
                expected |= set() if ask.seconds is None else {FinishReason.TIMEOUT}
                assert last.finish_reason in expected, last
                is_whole = last.usage.num_output_tokens == ask.max_tokens
                assert is_whole or last.finish_reason is not FinishReason.LENGTH
        eventually(self.is_idle, "nothing left")
        assert all(stream.deltas.empty() for _, stream in self.streams)

    def is_idle(self) -> bool:
        (llm,) = self.library.controls.llms
        stats = self.executor.stats()
        assert stats.adapters is not None
        return (llm._engine.num_live, stats.num_active_requests, stats.adapters.num_active) == (0, 0, 0)


def test_every_stream_ends_once_and_nothing_leaks(stand_in: Callable[..., Any]) -> None:
    library = stand_in()
    shelf = library.folder / "shelf"
    shelf.mkdir()
    manifest = library.manifest(lora=Lora(max_rank=8, max_adapters=2), max_batch_size=4, max_queue_size=16)
    for number in range(NUM_ADAPTERS):
        write_random_packed(shelf, f"a{number}", manifest, seed=number)
    executor = library.open(manifest, AdapterDirectories((shelf,), library.folder, manifest))
    library.controls.num_stale_misses = 2

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(ASKS)
    def run(asks: list[Ask]) -> None:
        crowd = Crowd(library, executor)
        for ask in asks:
            crowd.ask(ask)
        crowd.check()

    run()
    assert executor.is_healthy
