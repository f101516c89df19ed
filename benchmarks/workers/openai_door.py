"""One streamed completion over a connection of its own, read as leanly as Python allows."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass
from typing import Any, Final

MODEL: Final = "tensorrt_llm"
_OK: Final = 200
_RETRY_AFTER: Final = re.compile(rb"^retry-after: (\d+)\r$", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended. Times are seconds."""

    status: int
    """0 is a stream that broke."""
    seconds: float
    first: float = 0.0
    """Until the first of the text."""
    num_tokens: int = 0
    retry_after: int | None = None


async def ask_openai(address: str, prompt: list[int], num_tokens: int) -> Outcome:
    """Ask a gateway at `host:port` for `num_tokens`, end tokens ignored."""
    body = json.dumps(
        {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    started = time.monotonic()
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        # Closed at its end, so that a stream which breaks ends too: there is no [DONE] in it.
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        return await _read(reader, started)
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, started: float) -> Outcome:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status != _OK:
        match = _RETRY_AFTER.search(head)
        return Outcome(status, time.monotonic() - started, retry_after=None if match is None else int(match[1]))
    first, tail = 0.0, b""
    while b"[DONE]" not in tail:
        data = await reader.read(1 << 16)
        if not data:
            return Outcome(0, time.monotonic() - started, first)
        if not first and b'"text"' in data:
            first = time.monotonic() - started
        tail = tail[-600:] + data
    usage: dict[str, Any] = json.loads(tail[tail.rindex(b'{"id"') : tail.rindex(b"}\n\n") + 1])["usage"]
    return Outcome(_OK, time.monotonic() - started, first, int(usage["completion_tokens"]))
