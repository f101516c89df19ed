"""What comes back: requests under way, their sequences, and statistics of steps, each of which is told once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

from tensorrt_llm.controls import controls
from tensorrt_llm.executor.utils import RequestError

_ids = itertools.count(1)


class Response(NamedTuple):
    """One step's of one request."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Any, ...] = ()
    finish_reason: str | None = None
    metrics: Any = None
    generation_logits: Any = None
    context_logits: Any = None
    error: Exception | str | None = None


@dataclass
class CompletionOutput:
    """Cumulative, with what is new since the last step beside it."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: Any = None
    request_perf_metrics: Any = None
    generation_logits: Any = None
    """Of the last step alone."""
    num_told: int = 0

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self.num_told :]


class RequestOutput:
    """Made by `generate_async` alone."""

    def __init__(self) -> None:
        raise RuntimeError("RequestOutput is not to be made by users")

    @classmethod
    def make(cls, inputs: list[int], arguments: dict[str, Any], engine: Any, loop: Any) -> RequestOutput:
        made = cls.__new__(cls)
        made.request_id = next(_ids)
        made.prompt_token_ids, made.arguments = inputs, arguments
        made.outputs = [CompletionOutput(0)]
        made.finished = False
        made.context_logits = None
        made._engine, made._loop = engine, loop
        made._responses = asyncio.Queue()
        return made

    def put(self, response: Response) -> None:
        """From the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._responses.put_nowait, response)

    def abort(self) -> None:
        controls.num_aborts += 1
        self._engine.abort(self)

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished:
            raise StopAsyncIteration
        response = await self._responses.get()
        if response.error is not None:
            if isinstance(response.error, Exception):
                self._engine.close()
                raise response.error
            self.finished = True
            raise RequestError(response.error)
        (output,) = self.outputs
        output.num_told = len(output.token_ids)
        output.token_ids.extend(response.token_ids)
        output.logprobs.extend(response.logprobs)
        output.request_perf_metrics = response.metrics
        output.generation_logits = response.generation_logits
        if response.context_logits is not None:
            self.context_logits = response.context_logits
        output.finish_reason = response.finish_reason
        self.finished = response.finish_reason is not None
        return self


class Told:
    """An iteration over the records that the engine has; once it found none for a while, it takes a request to go on."""

    def __init__(self, records: deque[Any]) -> None:
        self.timeout: float | None = 2
        self._records = records
        self._is_done = False

    def mark_undone(self) -> None:
        self._is_done = False

    def __aiter__(self) -> Told:
        return self

    async def __anext__(self) -> Any:
        if self._is_done:
            raise StopAsyncIteration
        waited = 0.0
        while True:
            if self._records:
                return self._records.popleft()
            if self.timeout is not None and waited >= self.timeout:
                self._is_done = True
                raise StopAsyncIteration
            await asyncio.sleep(0.01)
            waited += 0.01


def metrics_of(num_reused: int, num_new: int, seconds: Callable[[float], Any]) -> Any:
    """Performance metrics as the C++ runtime gives them."""
    return SimpleNamespace(
        kv_cache_metrics=SimpleNamespace(num_reused_blocks=num_reused, num_new_allocated_blocks=num_new),
        timing_metrics=SimpleNamespace(arrival_time=seconds(100.0), first_scheduled_time=seconds(100.001)),
        speculative_decoding=SimpleNamespace(total_draft_tokens=6, total_accepted_draft_tokens=4),
    )
