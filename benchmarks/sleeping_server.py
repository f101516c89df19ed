"""SleepingServer: one `trierarch serve --idle-timeout`, asked over HTTP as curl would."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil

from trierarch.benchmarks.process_tree import descend
from trierarch.benchmarks.served import start_server
from trierarch.orchestrator.metrics import Metrics
from trierarch.orchestrator.sleep.http_exchange import BrokenOff, Head, exchange

TARGET: Final = b"/v2/models/tensorrt_llm/generate_stream"
HEADERS: Final = ((b"host", b"localhost"), (b"content-type", b"application/json"))
STOP_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.05
SERVERS: Final = ("tritonserver", "triton_python_b")
"""Names, as the kernel has them, of what may be killed: the server and its stubs."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of one streamed request."""

    status: int | None
    """None: the connection ended before anything was said."""
    events: tuple[str, ...]
    """Contents of the events, in JSON."""
    is_whole: bool
    """Whether the response came to its end."""
    first_after: float | None
    """Seconds from before the request was sent to its first event."""
    refusal: str = ""
    """What it was told where the status is an error's."""

    @property
    def text(self) -> str:
        """All text that was streamed."""
        return "".join(str(json.loads(event).get("text_output", "")) for event in self.events)


class SleepingServer:
    """Running since construction, with Triton awake."""

    def __init__(self, engine: Path, idle_timeout: float, *options: str) -> None:
        """Serve `engine`, ready when this returns.

        Raises:
            ResourceError: it did not start.
        """
        self.process, self.endpoints = start_server(engine, f"--idle-timeout={idle_timeout}s", *options)

    async def ask(self, text: str, max_tokens: int, **inputs: object) -> Heard:
        """Stream an answer to the end."""
        body = json.dumps({"text_input": text, "max_tokens": max_tokens, "stream": True} | inputs).encode()
        address = urlsplit(self.endpoints["http"]).netloc
        started, first_after = time.perf_counter(), None
        status, heard = None, b""
        try:
            async with aclosing(exchange(address, "POST", TARGET, HEADERS, body)) as parts:
                async for part in parts:
                    if isinstance(part, Head):
                        status = part.status
                    else:
                        first_after = first_after or time.perf_counter() - started
                        heard += part
            is_whole = True
        except BrokenOff:
            is_whole = False
        events = [line.removeprefix("data: ") for line in heard.decode().splitlines() if line.startswith("data: ")]
        refusal = "" if status in (None, 200) else heard.decode()
        return Heard(status, tuple(events), is_whole, first_after, refusal)

    def figure(self, name: str, **labels: str) -> float:
        """One of the front's own figures, `trierarch_sleep_NAME`."""
        return Metrics.read(self.endpoints["metrics"]).value(f"trierarch_sleep_{name}", **labels)

    async def asleep(self) -> None:
        """Wait until Triton sleeps."""
        while not await asyncio.to_thread(self.figure, "phase", phase="asleep"):
            await asyncio.sleep(POLL_SECONDS)

    def victims(self) -> list[psutil.Process]:
        """Processes that a request needs: the server and its stubs, none while it sleeps."""
        found = []
        for process in descend(self.process.pid):
            try:
                if process.name().startswith(SERVERS) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def resident_bytes(self) -> int:
        """Of the whole tree, now."""
        return sum(process.memory_info().rss for process in descend(self.process.pid))

    def close(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()


@contextmanager
def sleeping_server(engine: Path, idle_timeout: float, *options: str) -> Iterator[SleepingServer]:
    """One, ended when the block is left."""
    server = SleepingServer(engine, idle_timeout, *options)
    try:
        yield server
    finally:
        server.close()
