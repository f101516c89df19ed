"""Streams through one of two doors of a server, from a process of its own: OpenAI's events, or Triton's gRPC.

One line of JSON in (an `Order`), one line out (a `Tally`). Both doors are read as leanly as Python allows, by the same event
loop, so that what differs is the door.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import uvloop

from trierarch.orchestrator.gateway.tensors import Tensors
from trierarch.orchestrator.gateway.triton import Triton

MODEL: Final = "tensorrt_llm"
GRPC, OPENAI = "grpc", "openai"


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
    """Ask, and read every answer to its end."""
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
    async with triton.responses(order.address, request) as responses:
        async for response in responses:
            first = first or (time.monotonic() - started if response.raw_output_contents else 0.0)
    return order.num_tokens, first


async def _ask_openai(order: Order, prompt: list[int]) -> tuple[int, float]:
    """(tokens, seconds to the first text)."""
    body = json.dumps(
        {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": order.num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    started = time.monotonic()
    host, port = order.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {order.address}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    first, tail = 0.0, b""
    while b"[DONE]" not in tail:
        data = await reader.read(1 << 16)
        if not data:
            raise RuntimeError(f"the stream broke: {tail[-300:]!r}")
        if not first and b'"text"' in data:
            first = time.monotonic() - started
        tail = tail[-600:] + data
    writer.close()
    usage: dict[str, Any] = json.loads(tail[tail.rindex(b'{"id"') : tail.rindex(b"}\n\n") + 1])["usage"]
    return int(usage["completion_tokens"]), first


async def serve() -> None:
    """Fill orders until there are no more."""
    triton = Triton()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(asdict(await run(Order(**json.loads(line)), triton))), flush=True)
    await triton.close()


if __name__ == "__main__":
    uvloop.run(serve())
