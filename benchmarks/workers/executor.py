"""Our embedded executor, without Triton."""

from __future__ import annotations

import queue
import time
from importlib.metadata import version
from itertools import cycle
from pathlib import Path

from trierarch.benchmarks.workers.protocol import NUM_THREADS, Ready, Speculated, Steering, TokenIds, serve
from trierarch.python_backend.executors.executor import Executor
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.request import FinishReason, Request, SamplingParams, SpeculationParams, TokenDelta, Usage
from trierarch.python_backend.speculation.allotment import Allotment


class ExecutorWorker:
    """Submits to an Executor and collects its deltas."""

    def __init__(
        self, engine: Path, allotment: Allotment | None = None, adapter_directories: tuple[Path, ...] = ()
    ) -> None:
        """Load `engine`; see open_executor."""
        self._executor: Executor = open_executor(engine, allotment, adapter_directories)
        self._num_requests = 0
        self._steering = Steering()
        self._usages: list[Usage] = []

    @property
    def ready(self) -> Ready:
        """Our version; every limit is the engine's own."""
        return Ready(version("trierarch"), {"threads": NUM_THREADS})

    def steer(self, steering: Steering) -> None:
        """See Steered.steer."""
        self._steering = steering

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """Submit every prompt at once and wait for the last delta."""
        deltas: queue.SimpleQueue[TokenDelta] = queue.SimpleQueue()
        sampling = SamplingParams(max_tokens=num_output_tokens, temperature=0.0, end_ids=())
        speculation = _speculation(self._steering.speculation)
        outputs: dict[str, TokenIds] = {}
        self._usages = []
        names = cycle(self._steering.adapters or [""])
        for prompt, name in zip(prompts, names, strict=False):
            request_id = str(self._num_requests)
            self._num_requests += 1
            outputs[request_id] = []
            request = Request(
                request_id=request_id,
                prompt_token_ids=tuple(prompt),
                sampling=sampling,
                adapter=self._executor.find_adapter(name) if name else None,
                cache_salt=self._steering.tenant,
                speculation=speculation,
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
                if delta.usage is not None:
                    self._usages.append(delta.usage)
        return list(outputs.values())

    def counters(self) -> dict[str, float]:
        """See Counting.counters."""
        return {
            "num_draft_tokens": sum(usage.num_draft_tokens for usage in self._usages),
            "num_accepted_draft_tokens": sum(usage.num_accepted_draft_tokens for usage in self._usages),
        }

    def close(self) -> None:
        """Stop the loop."""
        self._executor.close()


def _speculation(speculated: Speculated) -> SpeculationParams:
    return SpeculationParams(max_draft_tokens=None if isinstance(speculated, str) else speculated)


if __name__ == "__main__":
    serve(ExecutorWorker)
