"""Front: the addresses that clients know, answered while Triton sleeps behind them. One process, one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from socket import socket
from typing import Any, Final

import grpc.aio

from trierarch.builder.errors import ResourceError
from trierarch.orchestrator.gateway.upstream import Endpoints as Addresses
from trierarch.orchestrator.gateway.upstream import Unavailable
from trierarch.orchestrator.http_server import HttpServer
from trierarch.orchestrator.server_config import Endpoints, ServerConfig
from trierarch.orchestrator.sleep.figures import Page
from trierarch.orchestrator.sleep.grpc_front import OPTIONS, GrpcFront
from trierarch.orchestrator.sleep.house import House, Resident
from trierarch.orchestrator.sleep.http_front import HttpFront
from trierarch.orchestrator.sleep.keeper import Keeper
from trierarch.orchestrator.sleep.metrics_front import MetricsFront
from trierarch.orchestrator.sleep.rest import Rest
from trierarch.orchestrator.sleep.sleepable import Sleepable
from trierarch.orchestrator.sleep.sleeper import Sleeper

CLOSE_SECONDS: Final = 1
"""For answers that are on their way when everything else has ended."""
Greet = Callable[[str, Addresses], Awaitable[None]]
"""Takes a server's name and where it listens."""


@dataclass(frozen=True, slots=True)
class Front:
    """All of it, serving."""

    house: House
    keeper: Keeper
    endpoints: Endpoints

    @property
    def line(self) -> str:
        """What sleeping saves and costs so far."""
        figures = self.keeper.figures
        if len(figures) == 1:
            return next(iter(figures.values())).line()
        return "; ".join(f"{name}: {one.line()}" for name, one in figures.items())

    async def close(self, drain_timeout: float) -> bool:
        """Refuse what is new, let what is open finish, stop every Triton. Whether all finished in time."""
        return await self.keeper.close(drain_timeout)


@asynccontextmanager
async def opened(
    servers: Mapping[str, tuple[Sleepable, int]],
    config: ServerConfig,
    rest: Rest,
    say: Callable[[str], None],
    budget: int | None = None,
    greet: Greet | None = None,
) -> AsyncIterator[Front]:
    """Listen where `config` says, every server awake once to see that it can; all stopped when the block is left.

    servers: by name, each with the bytes that it is thought to take. The first is meant by whoever names none.
    greet: called with each while it is awake for the first time.

    Raises:
        ResourceError: a port is occupied, or a server does not start.
    """
    with config.ports.bound(config.host) as sockets:  # before anything starts: an occupied port is told at once
        keeper = Keeper(servers, rest, say, budget)
        try:
            for name, sleeper in keeper.sleepers.items():
                await _wake_once(name, sleeper, greet)
            house = House(
                [
                    Resident(name, keeper.sleepers[name], keeper.figures[name], server.models)
                    for name, (server, _) in servers.items()
                ]
            )
            listening = replace(config, ports=config.ports.chosen(sockets))
            async with _answering(listening, sockets, house, keeper.page):
                try:
                    yield Front(house, keeper, listening.endpoints)
                finally:  # before the doors close: who is cut off is told so
                    await keeper.close(0.0)
        finally:
            await keeper.close(0.0)


async def _wake_once(name: str, sleeper: Sleeper, greet: Greet | None) -> None:
    try:
        async with sleeper.lease(float("inf")) as addresses:
            if greet is not None:
                await greet(name, addresses)
    except Unavailable as error:
        raise ResourceError(f"{name}: {error.reason}") from error


@asynccontextmanager
async def _answering(
    config: ServerConfig, sockets: Mapping[str, socket], house: House, page: Page
) -> AsyncIterator[None]:
    """The three doors, open."""
    sockets["grpc"].close()  # gRPC takes an address, not a socket
    grpc_front = GrpcFront(house)
    grpc_server = grpc.aio.server(options=(*OPTIONS, ("grpc.so_reuseport", 0)))
    grpc_server.add_generic_rpc_handlers((grpc_front,))
    host = f"[{config.host}]" if ":" in config.host else config.host
    try:
        grpc_server.add_insecure_port(f"{host}:{config.ports.grpc}")
    except RuntimeError as error:
        raise ResourceError(f"port {config.ports.grpc} on {config.host} was taken meanwhile: {error}") from error
    await grpc_server.start()
    try:
        async with (
            _http(HttpFront(house), sockets["http"]),
            _http(MetricsFront(house, page.render), sockets["metrics"]),
        ):
            yield
    finally:
        await grpc_server.stop(CLOSE_SECONDS)
        await grpc_front.close()


@asynccontextmanager
async def _http(application: Any, bound: socket) -> AsyncIterator[None]:
    server = HttpServer(application, has_date=False, close_seconds=CLOSE_SECONDS)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        while not (server.started or serving.done()):
            await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await serving
