"""`trierarch serve --idle-timeout`: the front with its Tritons, from the first start to the last word."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from trierarch.builder.errors import ConfigError
from trierarch.orchestrator.announcement import Announced
from trierarch.orchestrator.console import ERR, say, warn
from trierarch.orchestrator.gateway.gateway_config import GatewayConfig
from trierarch.orchestrator.gateway.gateway_server import GatewayServer
from trierarch.orchestrator.gateway.source import Source
from trierarch.orchestrator.kv_tiers import AS_THE_REPOSITORY_SAYS, KvTiers
from trierarch.orchestrator.server_config import Endpoints, ModelControl, ServerConfig
from trierarch.orchestrator.serving import prepared
from trierarch.orchestrator.sleep.appetite import appetite
from trierarch.orchestrator.sleep.front import opened
from trierarch.orchestrator.sleep.introductions import Introductions
from trierarch.orchestrator.sleep.rest import Rest
from trierarch.orchestrator.sleep.triton import SleepableTriton

STATUS_SECONDS: Final = 0.5
LAST_BYTES_SECONDS: Final = 2.0
"""For clients of the gateway to read what is left when everything is answered."""
Announce = Callable[[Announced, str | None], None]
"""Tells people what is served, and where the OpenAI API is."""
BEHIND: Final = "127.0.0.1"
"""Where Tritons listen: nobody but the front is to reach them."""


@dataclass(frozen=True, slots=True)
class SleepConfig:
    """What is served, and how."""

    paths: tuple[Path, ...]
    server: ServerConfig
    """Its ports are the front's."""
    rest: Rest
    adapters: tuple[Path, ...] = ()
    memory_budget: int | None = None
    """Bytes that servers may take together; None: of several, what is free now."""
    tiers: KvTiers = AS_THE_REPOSITORY_SAYS
    """Behind the KV cache of each."""
    gateway: GatewayConfig | None = None
    """Of the OpenAI API in front of them; None serves none."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be had together."""
        if self.server.model_control is not ModelControl.NONE:
            raise ConfigError(
                "--idle-timeout with --model-control explicit: what clients load and unload would be forgotten in the "
                "next sleep; leave out one of them"
            )
        if len(set(self.names)) < len(self.names):
            raise ConfigError(f"PATHs are named {', '.join(self.names)}: clients tell them by these names; rename one")
        if len(self.names) > 1 and not all(name.isascii() and name.isprintable() for name in self.names):
            raise ConfigError(
                f"PATHs are named {', '.join(self.names)}: clients tell them by these names in a header, which holds "
                "ASCII alone; rename those that have other characters"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """What clients call each of `paths`, where there are several."""
        return tuple(path.resolve().name for path in self.paths)


@dataclass(frozen=True, slots=True)
class Served:
    """What is announced. Implements Announced."""

    endpoints: Endpoints
    log: Path
    """Of the first Triton."""


def serve_sleeping(config: SleepConfig, announce: Announce) -> bool:
    """Serve until Ctrl-C or SIGTERM; a second one ends open streams. Whether all could finish.

    Raises:
        TrierarchError: a path is nothing to serve, a port is occupied, or a server does not start.
        KeyboardInterrupt: the second signal came, or the first one before anything was served.
    """
    behind = replace(config.server, host=BEHIND)
    with ExitStack() as stack:
        servers = {}
        for name, path in zip(config.names, config.paths, strict=True):
            server = stack.enter_context(
                prepared(path, behind, config.adapters, keep_prefixes=True, tiers=config.tiers)
            )
            servers[name] = SleepableTriton(server), appetite(path) + (config.tiers.host_bytes or 0)
        return asyncio.run(_serve(config, servers, announce))


async def _serve(config: SleepConfig, servers: dict[str, tuple[SleepableTriton, int]], announce: Announce) -> bool:
    budget = config.memory_budget
    if budget is None and len(servers) > 1:
        budget = psutil.virtual_memory().available
    ending, introductions = _Ending(), Introductions()
    try:
        with ERR.status("starting Triton") as status:
            async with (
                opened(servers, config.server, config.rest, warn, budget, introductions.greet) as front,
                _gateway(config.gateway, introductions.sources(front)) as gateway,
            ):
                ending.is_drained = True
                status.stop()
                served = Served(front.endpoints, next(iter(servers.values()))[0].server.log)
                await asyncio.to_thread(announce, served, None if gateway is None else gateway.url)
                if len(config.names) > 1:
                    say(f"engines: {', '.join(config.names)}; who names none means the first")
                say(f"Triton sleeps after {config.rest.idle_timeout:g} s without a request, and wakes for the next one")
                status.start()
                await ending.wait(lambda: status.update(front.line))
                status.stop()
                timeout = config.server.drain_timeout
                say(f"stopping: open streams have {timeout} s to finish (Ctrl-C again ends them at once)")
                if gateway is not None:
                    gateway.refuse_new()  # what is open in it is open in the front, which drains
                is_finished = await front.close(timeout)
                if gateway is not None:
                    await asyncio.to_thread(gateway.wait_idle, LAST_BYTES_SECONDS)
                say(front.line)
                return is_finished
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


@asynccontextmanager
async def _gateway(config: GatewayConfig | None, sources: list[Source]) -> AsyncIterator[GatewayServer | None]:
    """The OpenAI API, on a thread of its own; None where it is not wanted."""
    if config is None:
        yield None
        return
    server = GatewayServer(config, lambda: nullcontext(sources))
    await asyncio.to_thread(server.__enter__)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.close)


class _Ending:
    """SIGINT and SIGTERM: the first one asks for an end, if there is something to drain; every other cancels."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.is_drained = False
        self._task = task
        self._event = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._hear)

    async def wait(self, show: Callable[[], None]) -> None:
        """Until the first signal; where there is a terminal, `show` is called every now and then."""
        while not self._event.is_set():
            if ERR.is_terminal:
                show()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._event.wait(), STATUS_SECONDS if ERR.is_terminal else None)

    def _hear(self) -> None:
        if self._event.is_set() or not self.is_drained:
            self._task.cancel()
        self._event.set()
