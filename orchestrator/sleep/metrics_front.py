"""MetricsFront: the metrics page while Triton may be asleep: ours, behind Triton's if that is awake.

Of several Tritons every sample says whose it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

from trierarch.orchestrator.sleep.asgi import Answer, Receive, Scope, Send, respond
from trierarch.orchestrator.sleep.house import House, Resident
from trierarch.orchestrator.sleep.http_exchange import BrokenOff, exchange
from trierarch.orchestrator.sleep.merged_pages import merged


class MetricsFront:
    """Reading it wakes nobody and keeps nobody awake."""

    def __init__(self, house: House, page: Callable[[], bytes]) -> None:
        """page: renders our own figures."""
        self._house, self._page = house, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"
        if scope["path"] != "/metrics":
            await respond(send, Answer(404, [], b""))
            return
        pages = {name: await self._of_triton(resident) for name, resident in self._house.residents.items()}
        of_tritons = b"".join(pages.values()) if len(pages) == 1 else merged(pages)
        headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
        await respond(send, Answer(200, headers, of_tritons + self._page()))

    async def _of_triton(self, resident: Resident) -> bytes:
        endpoints = resident.sleeper.awake
        if endpoints is None:
            return b""
        page = bytearray()
        try:
            async with aclosing(exchange(endpoints.metrics, "GET", b"/metrics", [(b"host", b"triton")], b"")) as parts:
                async for part in parts:
                    if isinstance(part, bytes):
                        page += part
                    elif part.status != 200:
                        return b""
        except BrokenOff:
            return b""
        return bytes(page)
