"""Endpoint: what every door of the gateway does alike: the key, the body, the client that may go, the error that may come."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from trierarch.orchestrator.gateway.admission import Admission
from trierarch.orchestrator.gateway.api_keys import NOBODY, ApiKeys
from trierarch.orchestrator.gateway.errors import ApiError, of_triton, of_upstream
from trierarch.orchestrator.gateway.exchange import ClientGone, Exchange, Receive, Send
from trierarch.orchestrator.gateway.gateway_config import GatewayConfig
from trierarch.orchestrator.gateway.gateway_metrics import GatewayMetrics
from trierarch.orchestrator.gateway.upstream import Unavailable
from trierarch.python_backend.triton.status import RelayedError

logger = logging.getLogger(__name__)

CLIENT_GONE: Final = 499
"""In metrics, as nginx has it: nobody is there to be told a status."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request as an endpoint's work sees it."""

    exchange: Exchange
    key: int
    """Number of the API key that it came with."""
    body: bytes


Work = Callable[[Call], Awaitable[None]]


class Endpoint:
    """An ASGI application that does one thing."""

    def __init__(
        self,
        name: str,
        method: str,
        work: Work,
        *,
        config: GatewayConfig,
        keys: ApiKeys,
        admission: Admission,
        metrics: GatewayMetrics,
        is_open: bool = False,
        generates: bool = False,
    ) -> None:
        """`name`: in metrics; `method`: GET, POST, or nothing for any.

        is_open: to whoever has no key; generates: it takes a place while it runs.
        """
        self._name, self._method, self._work = name, method, work
        self._config, self._keys, self._admission, self._metrics = config, keys, admission, metrics
        self._is_open, self._generates = is_open, generates

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        exchange = Exchange(scope, receive, send, self._config.write_timeout)
        status: int | None = None
        try:
            await self._answer(exchange)
        except ClientGone:
            status = CLIENT_GONE
        except Exception as error:
            refusal = self._refusal(error)
            if refusal.status >= 500 and refusal.retry_after is None:
                logger.error("request %s failed", exchange.request_id, exc_info=error)
            with contextlib.suppress(ClientGone):
                await exchange.fail(refusal)
            status = refusal.status
        finally:
            self._metrics.requests.labels(self._name, str(status or exchange.status or CLIENT_GONE)).inc()

    async def _answer(self, exchange: Exchange) -> None:
        sent = "GET" if exchange.method == "HEAD" else exchange.method
        if self._method and sent != self._method:
            raise ApiError(405, f"{self._name} takes {self._method}, not {sent[:20]}", code="method_not_allowed")
        key = NOBODY if self._is_open else self._keys.check(exchange.header(b"authorization"))
        body = b""
        if self._method == "POST":
            body = await exchange.read_body(self._config.max_body_bytes, self._config.read_timeout)
        call = Call(exchange, key, body)
        if not self._generates:
            await self._work(call)
            return
        with self._admission.admit(key):
            await _while_there(exchange, self._work(call))

    def _refusal(self, error: Exception) -> ApiError:
        if isinstance(error, ApiError):
            return error
        if isinstance(error, RelayedError):
            return of_triton(error, self._admission.retry_after())
        if isinstance(error, Unavailable):
            return of_upstream(error)
        # What it was is the log's to say: a message may tell of our insides.
        return ApiError(500, f"internal error ({type(error).__name__}); the server's log has the details")


async def _while_there(exchange: Exchange, work: Awaitable[None]) -> None:
    """Do `work`, and leave it at once where the client hangs up.

    Raises:
        ClientGone: it did.
    """
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(exchange.wait_gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        await working
    finally:
        for task in (working, watching):
            task.cancel()
        # Nothing of it may go on when the place is given back.
        await asyncio.gather(working, watching, return_exceptions=True)
