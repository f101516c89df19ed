"""Our embedded executor, without Triton."""

from __future__ import annotations

import queue
import time
from importlib.metadata import version
from pathlib import Path

from trierarch.benchmarks.workers.protocol import NUM_THREADS, Ready, TokenIds, serve
from trierarch.python_backend.executors.executor import Executor
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.request import FinishReason, Request, SamplingParams, TokenDelta


class ExecutorWorker:
    """Submits to an Executor and collects its deltas."""

    def __init__(self, engine: Path) -> None:
        """Load `engine`."""
        self._executor: Executor = open_executor(engine)
        self._num_requests = 0

    @property
    def ready(self) -> Ready:
        """Our version; every limit is the engine's own."""
        return Ready(version("trierarch"), {"threads": NUM_THREADS})

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """Submit every prompt at once and wait for the last delta."""
        deltas: queue.SimpleQueue[TokenDelta] = queue.SimpleQueue()
        sampling = SamplingParams(max_tokens=num_output_tokens, temperature=0.0, end_ids=())
        outputs: dict[str, TokenIds] = {}
        for prompt in prompts:
            request_id = str(self._num_requests)
            self._num_requests += 1
            outputs[request_id] = []
            request = Request(
                request_id=request_id,
                prompt_token_ids=tuple(prompt),
                sampling=sampling,
                arrival_time=time.monotonic(),
            )
            self._executor.submit(request, deltas.put)
        num_unfinished = len(prompts)
        while num_unfinished:
            delta = deltas.get()
            outputs[delta.request_id].extend(delta.token_ids)
            if delta.finish_reason is not None:
                if delta.finish_reason is not FinishReason.LENGTH:
                    raise RuntimeError(f"request {delta.request_id} ended with {delta.finish_reason}: {delta.error}")
                num_unfinished -= 1
        return list(outputs.values())

    def close(self) -> None:
        """Stop the loop."""
        self._executor.close()


if __name__ == "__main__":
    serve(ExecutorWorker)
