"""Exchange: one HTTP request and the answer to it, over ASGI."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from trierarch.orchestrator.gateway.errors import ApiError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

REQUEST_ID: Final = b"x-request-id"
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_STREAM_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx keeps streams back otherwise
]


class ClientGone(Exception):
    """The client hung up, or does not read."""


class Exchange:
    """What an endpoint reads of a request, and writes to it. Answered once."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, write_timeout: float) -> None:
        """`write_timeout`: seconds that a client may leave unread what it asked for."""
        self._receive, self._send = receive, send
        self._write_timeout = write_timeout
        self._headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # the first of a name counts
        self.method: str = scope["method"]
        self.path_params: dict[str, Any] = scope.get("path_params", {})
        self.query: bytes = scope.get("query_string", b"")
        sent = self._headers.get(REQUEST_ID, b"")
        self.request_id = sent.decode() if _REQUEST_ID.fullmatch(sent) else f"req-{uuid.uuid4().hex}"
        """The client's, where it is one that a log can bear."""
        self.status: int | None = None
        """Of the answer, once it has begun."""
        self.is_over = False

    def header(self, name: bytes) -> bytes | None:
        """A header, by its name in lower case."""
        return self._headers.get(name)

    async def read_body(self, most: int, seconds: float) -> bytes:
        """The whole body.

        Raises:
            ApiError: it has more than `most` bytes, or does not come within `seconds`.
            ClientGone: the client hung up.
        """
        declared = self._headers.get(b"content-length", b"0")
        if declared.isdigit() and (len(declared) > 15 or int(declared) > most):
            raise _too_large(most)
        try:
            async with asyncio.timeout(seconds):
                return await self._read(most)
        except TimeoutError:
            raise ApiError(408, f"the body was not there within {seconds:g} s", code="timeout") from None

    async def _read(self, most: int) -> bytes:
        parts, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > most:
                raise _too_large(most)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def wait_gone(self) -> None:
        """Until the client hangs up. The body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(
        self,
        body: bytes,
        status: int = 200,
        content_type: bytes = b"application/json",
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        """Answer all at once."""
        more = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *(headers or [])]
        await self._start(status, more)
        await self._write(body, is_last=True)

    async def fail(self, error: ApiError) -> None:
        """Answer with an error, as an event where a stream has begun: it then ends without [DONE]."""
        if self.status is None:
            # What is left of a body that was refused must not be taken for the next request.
            close = [(b"connection", b"close")] if error.status in (408, 413) else []
            await self.answer(error.body(), error.status, headers=error.headers() + close)
        elif not self.is_over:
            await self._write(b"data: " + error.body() + b"\n\n", is_last=True)

    async def write_event(self, data: bytes) -> None:
        """Send part of a stream; returns once the client has room for more.

        Raises:
            ClientGone: it has had none for too long.
        """
        if self.status is None:
            await self._start(200, _STREAM_HEADERS)
        await self._write(data, is_last=False)

    async def end_events(self, data: bytes) -> None:
        """Send the last part of a stream."""
        if self.status is None:
            await self._start(200, _STREAM_HEADERS)
        await self._write(data, is_last=True)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        own = [(REQUEST_ID, self.request_id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *own]})

    async def _write(self, data: bytes, is_last: bool) -> None:
        self.is_over = is_last
        try:
            async with asyncio.timeout(self._write_timeout):
                await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
        except TimeoutError:
            raise ClientGone from None


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body has more than {most} bytes; send less", code="request_too_large")
