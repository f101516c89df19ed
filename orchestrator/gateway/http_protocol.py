"""HttpProtocol: uvicorn's HTTP over httptools, with what it does not bound bounded: headers, connections, patience.

Its parser refuses what request smuggling needs (two lengths, a length beside chunks, bare line feeds); it takes headers of
any size, and waits for ever for their end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from trierarch.orchestrator.gateway.errors import ApiError


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Of one gateway."""

    max_header_bytes: int
    """Of a request's first line and all its headers."""
    max_connections: int
    header_seconds: float
    """From a connection, or a request's first byte, to the end of the request's headers."""


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, limits: HttpLimits, **options: Any) -> None:
        """`options` are what uvicorn makes a protocol with."""
        super().__init__(**options)
        self._limits = limits
        self._in_headers = True
        self._num_received = 0  # bytes that came while headers were awaited
        self._num_header_bytes = 0  # of the headers parsed so far
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        most = self._limits.max_connections
        if len(self.connections) > most:
            self._refuse(ApiError(503, f"{most} connections are open: at most", code="overloaded", retry_after=1.0))
        else:
            self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._be_at_ease()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.transport.is_closing():
            return
        if self._in_headers:
            self._num_received += len(data)
            if self._patience is None:
                self._be_patient()
        super().data_received(data)
        # One header that never ends is not parsed, and so not counted there.
        if self._in_headers and self._num_received > self._limits.max_header_bytes:
            self._refuse_headers()

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._be_at_ease()
        self._in_headers, self._num_received, self._num_header_bytes = False, 0, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """See httptools."""
        self._in_headers = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """In OpenAI's shape."""
        self._refuse(ApiError(400, msg, code="bad_http"))

    def _count(self, count: int) -> None:
        self._num_header_bytes += count
        if self._num_header_bytes > self._limits.max_header_bytes:
            self._refuse_headers()
            raise ValueError("the headers are too large")  # ends the parser

    def _refuse_headers(self) -> None:
        most = self._limits.max_header_bytes
        self._refuse(ApiError(431, f"the headers have more than {most} bytes", code="headers_too_large"))

    def _be_patient(self) -> None:
        self._patience = self.loop.call_later(self._limits.header_seconds, self._lose_patience)

    def _be_at_ease(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        self._refuse(ApiError(408, f"no request came within {self._limits.header_seconds:g} s", code="timeout"))

    def _refuse(self, error: ApiError) -> None:
        self._be_at_ease()
        if self.transport.is_closing():
            return
        body = error.body()
        head = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()]
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        head += [name + b": " + value for name, value in (*headers, (b"connection", b"close"), *error.headers())]
        self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + body)
        self.transport.close()
