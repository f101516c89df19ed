"""What an executor answers to the same few prompts with each of some adapters, all asked at once."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable

from trierarch.python_backend.executors.executor import Executor
from trierarch.python_backend.request import Request, SamplingParams, SpeculationParams, TokenDelta

PROMPTS = ((3, 4, 5, 6, 7), (9, 8, 7), (3, 4, 5, 6, 9))
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, end_ids=())
SEEDED = SamplingParams(max_tokens=24, temperature=0.7, top_p=0.9, seed=7, end_ids=())


def answers(
    executor: Executor,
    names: Iterable[str],
    sampling: SamplingParams = GREEDY,
    guesses: bool = True,
    prompts: Iterable[tuple[int, ...]] = PROMPTS,
) -> list[list[int]]:
    """Of each name's requests, one for each prompt; "" is the base model."""
    speculation = SpeculationParams(max_draft_tokens=None if guesses else 0)
    deltas: queue.SimpleQueue[TokenDelta] = queue.SimpleQueue()
    outputs: dict[str, list[int]] = {}
    asked = [(place, name, prompt) for place, name in enumerate(names) for prompt in prompts]
    for place, name, prompt in asked:
        request = Request(
            request_id=f"{place} {prompt}",
            prompt_token_ids=prompt,
            sampling=sampling,
            speculation=speculation,
            adapter=executor.find_adapter(name) if name else None,
            arrival_time=time.monotonic(),
        )
        outputs[request.request_id] = []
        executor.submit(request, deltas.put)
    for _ in range(len(outputs)):
        while (delta := deltas.get(timeout=60)).finish_reason is None:
            outputs[delta.request_id] += delta.token_ids
        assert delta.error is None
        outputs[delta.request_id] += delta.token_ids
    return list(outputs.values())
