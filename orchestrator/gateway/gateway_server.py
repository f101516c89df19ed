"""GatewayServer: a gateway with a port and an event loop of its own, on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Final, Self

import uvloop

from trierarch.orchestrator.gateway.gateway import Gateway
from trierarch.orchestrator.gateway.gateway_config import GatewayConfig
from trierarch.orchestrator.gateway.http_protocol import HttpLimits, HttpProtocol
from trierarch.orchestrator.gateway.source import Source
from trierarch.orchestrator.http_server import HttpServer
from trierarch.orchestrator.ports import bind
from trierarch.orchestrator.server_config import WILDCARDS

END_SECONDS: Final = 5.0

SourcesFactory = Callable[[], AbstractAsyncContextManager[Sequence[Source]]]
"""The engines that are served. Called within the gateway's event loop."""


class GatewayServer:
    """Serves within a `with` block; leaving it cuts what is still open."""

    def __init__(self, config: GatewayConfig, sources: SourcesFactory) -> None:
        """Nothing listens yet."""
        self._config, self._sources = config, sources
        self._socket: socket.socket | None = None
        self._port = config.port
        self._thread = threading.Thread(target=self._run, name="trierarch-gateway", daemon=True)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gateway: Gateway | None = None
        self._server: HttpServer | None = None

    def __enter__(self) -> Self:
        """Listen.

        Raises:
            ResourceError: the port is occupied.
            ConfigError: what the configuration names cannot be read.
        """
        self._socket = bind("gateway", self._config.host, self._config.port)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            self._socket.close()
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.close()

    @property
    def url(self) -> str:
        """Where clients on this machine find it."""
        assert self._socket is not None
        host = WILDCARDS.get(self._config.host, self._config.host)
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self._port}"

    @property
    def is_running(self) -> bool:
        """Whether it serves, or ends."""
        return self._thread.is_alive()

    def refuse_new(self) -> None:
        """Answer new requests 503 from now on, and say so where readiness is asked for; open ones go on."""
        gateway = self._gateway
        if gateway is not None:
            self._call(gateway.admission.drain)

    def wait_idle(self, seconds: float) -> bool:
        """Wait until no request is open; whether that came within `seconds`."""
        assert self._loop is not None
        assert self._gateway is not None
        future = asyncio.run_coroutine_threadsafe(self._gateway.admission.wait_idle(), self._loop)
        try:
            future.result(seconds)
        except TimeoutError:
            future.cancel()
            return False
        return True

    def close(self) -> None:
        """Cut what is open and end. Idempotent."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(2 * END_SECONDS)

    def _call(self, function: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is over already
            self._loop.call_soon_threadsafe(function)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if self._started.is_set():
                logging.getLogger(__name__).exception("the gateway failed")
            self._failure = error  # raised where it was started
        finally:
            self._started.set()

    async def _serve(self) -> None:
        assert self._socket is not None
        self._socket.listen(1024)
        self._port = self._socket.getsockname()[1]
        self._loop = asyncio.get_running_loop()
        config = self._config
        async with self._sources() as sources:
            gateway = self._gateway = Gateway(config, sources)
            limits = HttpLimits(
                max_header_bytes=config.max_header_bytes,
                max_connections=config.max_connections,
                header_seconds=config.read_timeout,
            )
            self._server = HttpServer(gateway.application, protocol=partial(HttpProtocol, limits))
            self._started.set()
            await self._server.serve(sockets=[self._socket])
            await gateway.close()
