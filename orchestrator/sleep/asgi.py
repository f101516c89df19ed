"""What HTTP fronts speak with uvicorn: ASGI's messages as a whole call and a whole answer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from trierarch.orchestrator.gateway.upstream import ENGINE_HEADER
from trierarch.orchestrator.sleep.http_exchange import Headers
from trierarch.orchestrator.sleep.kept_bytes import MAX_REQUEST_BYTES, KeptBytes

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class TooLarge(Exception):
    """A request's body."""


class HungUp(Exception):
    """The client did."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request, whole."""

    method: str
    path: str
    target: bytes
    """Path and query, as the client wrote them."""
    headers: Headers
    body: bytes

    @property
    def engine(self) -> str | None:
        """Whom it means."""
        name = next((value for name, value in self.headers if name == ENGINE_HEADER.encode()), None)
        return None if name is None else name.decode("latin-1")


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, whole."""

    status: int
    headers: Headers
    body: bytes

    @classmethod
    def error(cls, status: int, message: str, *headers: tuple[bytes, bytes]) -> Answer:
        """In Triton's own form."""
        return cls(status, [(b"content-type", b"application/json"), *headers], json.dumps({"error": message}).encode())


async def read(scope: Scope, receive: Receive, kept: KeptBytes) -> Call:
    """The whole request, its body taken of `kept`.

    Raises:
        HungUp, TooLarge, TooManyBytes: as their names say.
    """
    body = await _body(receive, kept)
    query = scope["query_string"]
    target = scope["raw_path"] + (b"?" + query if query else b"")
    return Call(scope["method"], scope["path"], target, list(scope["headers"]), body)


async def _body(receive: Receive, kept: KeptBytes) -> bytes:
    pieces: list[bytes] = []
    num_bytes = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HungUp
            piece = message.get("body", b"")
            kept.take(len(piece))
            num_bytes += len(piece)
            if num_bytes > MAX_REQUEST_BYTES:
                raise TooLarge(f"the body has more than {MAX_REQUEST_BYTES} bytes")
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)
    except BaseException:
        kept.give_back(num_bytes)
        raise


async def wait_for_hang_up(receive: Receive) -> None:
    """Return when the client has hung up, or has its answer."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def respond(send: Send, answer: Answer) -> None:
    """Send it all."""
    length = (
        []
        if any(name == b"content-length" for name, _ in answer.headers)
        else [(b"content-length", str(len(answer.body)).encode())]
    )
    await send({"type": "http.response.start", "status": answer.status, "headers": [*answer.headers, *length]})
    await send({"type": "http.response.body", "body": answer.body})
