"""Streams through one of two doors of a server, from a process of its own: OpenAI's events, or Triton's gRPC.

One line of JSON in (an `Order`), one line out (a `Tally`). Both doors are read by the same event loop, so that what differs
is the door.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Final

import uvloop

from trierarch.benchmarks.workers.openai_door import MODEL, ask_openai
from trierarch.orchestrator.gateway.tensors import Tensors
from trierarch.orchestrator.gateway.triton import Triton
from trierarch.orchestrator.gateway.upstream import Endpoints

GRPC: Final = "grpc"
OPENAI: Final = "openai"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to ask for."""

    door: str
    address: str
    """host:port."""
    prompts: list[list[int]]
    """All at once, a stream for each."""
    num_tokens: int
    """Of each answer; end tokens are ignored."""


@dataclass(slots=True)
class Tally:
    """What came of it. Times are seconds."""

    seconds: float = 0.0
    """From the first request to the end of the last answer."""
    num_tokens: int = 0
    first: list[float] = field(default_factory=list)
    """From each request to the first of its text."""


async def run(order: Order, triton: Triton) -> Tally:
    """Ask, and read every answer to its end. Raise RuntimeError where one was refused."""
    ask: dict[str, Callable[[list[int]], Awaitable[tuple[int, float]]]] = {
        GRPC: lambda prompt: _ask_grpc(order, prompt, triton),
        OPENAI: lambda prompt: _ask_openai(order, prompt),
    }
    started = time.monotonic()
    done = await asyncio.gather(*(ask[order.door](prompt) for prompt in order.prompts))
    seconds = time.monotonic() - started
    return Tally(seconds, sum(count for count, _ in done), [first for _, first in done])


async def _ask_grpc(order: Order, prompt: list[int], triton: Triton) -> tuple[int, float]:
    """(tokens, seconds to the first text)."""
    tensors = Tensors()
    tensors.integers("input_ids", prompt)
    tensors.integer("request_output_len", order.num_tokens)
    tensors.integer("end_id", -1)
    tensors.flag("streaming")
    tensors.flag("return_finish_reason")
    started = time.monotonic()
    first = 0.0
    request = tensors.request(MODEL, "load", ["text_output", "finish_reason"])
    async with triton.responses(Endpoints(grpc=order.address, http="", metrics=""), request) as responses:
        async for response in responses:
            first = first or (time.monotonic() - started if response.raw_output_contents else 0.0)
    return order.num_tokens, first


async def _ask_openai(order: Order, prompt: list[int]) -> tuple[int, float]:
    outcome = await ask_openai(order.address, prompt, order.num_tokens)
    if outcome.num_tokens != order.num_tokens:
        raise RuntimeError(f"the gateway gave {outcome}")
    return outcome.num_tokens, outcome.first


async def serve() -> None:
    """Fill orders until there are no more."""
    triton = Triton()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(asdict(await run(Order(**json.loads(line)), triton))), flush=True)
    await triton.close()


if __name__ == "__main__":
    uvloop.run(serve())
