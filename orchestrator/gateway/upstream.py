"""The Triton behind the gateway, as the gateway sees it: an address that is good while a lease on it is held."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self
from urllib.parse import urlsplit

from trierarch.orchestrator.gateway.vital_signs import VitalSigns

if TYPE_CHECKING:
    from trierarch.orchestrator import server_config

LOOK_SECONDS: Final = 1.0
ENGINE_HEADER: Final = "x-trierarch-engine"
"""HTTP header and gRPC metadata that name the engine that is meant; without it, the first one is."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where one Triton listens: each address is `host:port`."""

    grpc: str
    http: str
    metrics: str
    engine: str = ""
    """What is meant there, where several share an address."""

    @classmethod
    def of(cls, urls: server_config.Endpoints, engine: str = "") -> Self:
        """Of a server that we run, which is known by URLs."""
        http, metrics = urlsplit(urls.http).netloc, urlsplit(urls.metrics).netloc
        return cls(grpc=urls.grpc, http=http, metrics=metrics, engine=engine)


class Upstream(Protocol):
    """One Triton, and whoever keeps it awake. For one event loop."""

    def lease(self) -> AbstractAsyncContextManager[Endpoints]:
        """Keep Triton up for one request, from before it is sent until its last byte is answered.

        Entering waits, for a bounded time, while Triton starts; leaving never waits.

        Raises, on entering:
            Unavailable: Triton cannot be had now; it says when to come back, and why.
        """
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered: Triton is up, or asleep and able to wake."""
        ...

    @property
    def awake(self) -> Endpoints | None:
        """Where Triton listens, if it is up now: to look at it without keeping or waking it."""
        ...

    @property
    def metrics(self) -> str | None:
        """`host:port` of a page of metrics that can be read now, without keeping Triton awake or waking it."""
        ...


class Unavailable(Exception):
    """No Triton for this request, now."""

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        """Seconds."""


class AlwaysOn:
    """A Triton that somebody else keeps up. Looked at every second within its `async with` block."""

    def __init__(self, endpoints: Endpoints, model: str = "") -> None:
        """Not ready before the first look; `model`: the one that it is ready for, every one if it has no name."""
        self._endpoints = endpoints
        self._signs = VitalSigns(endpoints.http, endpoints.metrics, model)
        self._is_ready = False
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Look, and go on looking."""
        await self.look()
        self._watch = asyncio.ensure_future(self._look_on())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look no more."""
        assert self._watch is not None
        self._watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watch

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Endpoints]:
        """See Upstream. It never waits: whoever keeps Triton up may take minutes."""
        if not self._is_ready:
            raise Unavailable("the model's server is not ready", LOOK_SECONDS)
        yield self._endpoints

    @property
    def is_ready(self) -> bool:
        """See Upstream."""
        return self._is_ready

    @property
    def awake(self) -> Endpoints | None:
        """See Upstream."""
        return self._endpoints if self._is_ready else None

    @property
    def metrics(self) -> str | None:
        """See Upstream."""
        return self._endpoints.metrics if self._is_ready else None

    async def look(self) -> None:
        """Find out whether Triton is up."""
        self._is_ready = await asyncio.to_thread(self._signs.are_good)

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()
