"""One HTTP/1.1 request to Triton and its response, over a connection of its own; closing it cancels the work there."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Final

import httptools

Headers = list[tuple[bytes, bytes]]

READ_BYTES: Final = 1 << 16
HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}
)
"""Of one connection alone (RFC 9110, 7.6.1); in lower case. `expect` is answered by who reads the body: us."""


@dataclass(frozen=True, slots=True)
class Head:
    """How a response begins."""

    status: int
    headers: Headers


class BrokenOff(Exception):
    """The connection could not be made, or ended before the response did."""


async def exchange(
    address: str, method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> AsyncGenerator[Head | bytes]:
    """Send a request to `address` (host:port); its response, head first, body in pieces as they come.

    Raises:
        BrokenOff: as its name says.
    """
    host, _, port = address.rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except OSError as error:
        raise BrokenOff(str(error)) from error
    try:
        writer.write(_request(method, target, headers, body))
        response = _Response()
        while not (response.is_complete or (method == "HEAD" and response.has_begun)):
            piece = await reader.read(READ_BYTES)
            if not piece:
                raise BrokenOff("the connection was closed")
            response.parser.feed_data(piece)
            while response.parts:
                yield response.parts.popleft()
    except (OSError, httptools.HttpParserError) as error:
        raise BrokenOff(str(error)) from error
    finally:
        writer.transport.abort()


def _request(method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    kept = [(name, value) for name, value in headers if name not in HOP_BY_HOP and name != b"content-length"]
    kept += [(b"connection", b"close")]
    if body or method in ("POST", "PUT"):
        kept.append((b"content-length", str(len(body)).encode()))
    lines = [method.encode() + b" " + target + b" HTTP/1.1", *(name + b": " + value for name, value in kept)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class _Response:
    """What httptools calls while it parses."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.parts: deque[Head | bytes] = deque()
        self.is_complete = self.has_begun = False
        self._headers: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.has_begun = True
        self.parts.append(Head(self.parser.get_status_code(), self._headers))

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.is_complete = True
