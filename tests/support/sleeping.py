"""A front over stand-ins, in this process, with clients of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from support.stand_in import StandIn
from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.sleep.front import Front, Greet, opened
from trierarch.orchestrator.sleep.lifecycle import Phase
from trierarch.orchestrator.sleep.rest import Rest

ANY_PORTS = Ports(http=0, grpc=0, metrics=0)
PATIENCE_SECONDS = 60.0
NEVER_IDLE_SECONDS = 3600.0
"""Unless a test has it sleep, it is awake: a test that raced with a timer would fail where the host stalls."""


@dataclass(frozen=True, slots=True)
class Sleeping:
    """What a test talks to."""

    front: Front
    servers: dict[str, StandIn]
    client: httpx.AsyncClient
    said: list[str]

    @property
    def server(self) -> StandIn:
        """The only one."""
        (server,) = self.servers.values()
        return server

    @property
    def phase(self) -> Phase:
        """Of the only one."""
        (sleeper,) = self.front.keeper.sleepers.values()
        return sleeper.lifecycle.phase

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Let the loop run until `holds()`."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not holds():
                await asyncio.sleep(0.002)
        assert holds(), what

    async def asleep(self) -> None:
        """Wait until it sleeps."""
        await self.until(lambda: self.phase is Phase.ASLEEP, "asleep")

    async def put_to_sleep(self) -> None:
        """Have it sleep now, as one that makes room for another does."""
        (sleeper,) = self.front.keeper.sleepers.values()
        async with sleeper.lease():
            sleeper.lifecycle.make_room()
        await self.asleep()

    async def stream(self, text: str, num_events: int = 3, seconds: float = 0.0) -> list[str]:
        """The texts of a streamed answer."""
        body = {"text_input": text, "max_tokens": num_events, "seconds": seconds}
        response = await self.client.post("/v2/models/m/generate_stream", json=body)
        assert response.status_code == 200, response.text
        return texts(response.text)

    async def log(self) -> list[list[str]]:
        """What the server that is awake has seen."""
        logged: list[list[str]] = (await self.client.get("/v2/log")).json()
        return logged


def texts(events: str) -> list[str]:
    """Of events as text."""
    return [str(event(line)["text_output"]) for line in events.splitlines() if line.startswith("data: ")]


def event(line: str) -> dict[str, Any]:
    """The content of a line of events."""
    content: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return content


def expected(text: str, num_events: int = 3) -> list[str]:
    """What a stand-in answers."""
    return [f"{text}.{index}" for index in range(num_events)]


@asynccontextmanager
async def sleeping(
    idle_timeout: float = NEVER_IDLE_SECONDS,
    wake_timeout: float = PATIENCE_SECONDS,
    max_held_requests: int = 100,
    start_seconds: float = 0.0,
    names: tuple[str, ...] = ("only",),
    budget: int | None = None,
    is_grpc: bool = False,
    greet: Greet | None = None,
) -> AsyncIterator[Sleeping]:
    """Stand-ins behind a front on free ports."""
    servers = {name: StandIn(is_grpc, start_seconds) for name in names}
    rest = Rest(idle_timeout=idle_timeout, wake_timeout=wake_timeout, max_held_requests=max_held_requests)
    said: list[str] = []
    residents = {name: (server, 1) for name, server in servers.items()}
    async with opened(residents, ServerConfig(ports=ANY_PORTS), rest, said.append, budget, greet) as front:
        base_url = front.endpoints.http
        async with httpx.AsyncClient(base_url=base_url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
            yield Sleeping(front, servers, client, said)


def address(url: str) -> str:
    """host:port of a URL."""
    return urlsplit(url).netloc
