"""A client of an executor: asks for several things at once, and gathers the answers."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass, field
from typing import Any, Final

from trierarch.python_backend.errors import ServingError
from trierarch.python_backend.executors.loop import StepExecutor
from trierarch.python_backend.request import FinishReason, Request, SamplingParams, SpeculationParams, TokenDelta

PROMPT: Final = (40, 50, 60)


@dataclass
class Stream:
    """One sequence's tokens and its last delta."""

    deltas: list[TokenDelta] = field(default_factory=list)

    @property
    def token_ids(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]

    @property
    def reason(self) -> FinishReason | None:
        return self.deltas[-1].finish_reason

    @property
    def error(self) -> ServingError | None:
        return self.deltas[-1].error

    @property
    def num_preemptions(self) -> int:
        usage = self.deltas[-1].usage
        assert usage is not None
        return usage.num_preemptions


@dataclass
class Client:
    """Asks an executor and reads the answers."""

    executor: StepExecutor
    num_asked: int = 0

    def ask(self, *asks: dict[str, Any]) -> list[Stream]:
        """Ask all at once; the streams of all their sequences, in order. Fields of SamplingParams, prompt, draft and the like."""
        deltas: queue.SimpleQueue[TokenDelta] = queue.SimpleQueue()
        streams: dict[tuple[str, int], Stream] = {}
        for ask in asks:
            self.num_asked += 1
            prompt, draft = ask.pop("prompt", PROMPT), ask.pop("draft", ())
            known, adapter, salt = ask.pop("answer_so_far", ()), ask.pop("adapter", ""), ask.pop("cache_salt", "")
            sampling = SamplingParams(**{"max_tokens": 30, "temperature": 0.0, **ask})
            request_id = str(self.num_asked)
            streams |= {(request_id, index): Stream() for index in range(sampling.n)}
            request = Request(
                request_id=request_id,
                prompt_token_ids=prompt,
                sampling=sampling,
                answer_so_far=known,
                adapter=self.executor.find_adapter(adapter) if adapter else None,
                cache_salt=salt,
                speculation=SpeculationParams(draft_token_ids=draft),
                arrival_time=time.monotonic(),
            )
            self.executor.submit(request, deltas.put)
        num_open = len(streams)
        while num_open:
            delta = deltas.get(timeout=60)
            streams[delta.request_id, delta.index].deltas.append(delta)
            num_open -= delta.finish_reason is not None
        return list(streams.values())
