"""HttpFront: Triton's HTTP door while Triton may be asleep. An ASGI application that passes on what it does not answer.

| call | while asleep |
| --- | --- |
| health of the server and of a model, index of models | answered here, always: whether a request would be answered |
| metadata, configuration | answered here from the second time on; they do not change |
| registering shared memory | refused: Triton would have forgotten it after the next sleep |
| what is not below /v2 | not found: Triton has nothing there, and whoever probes a port asks for / |
| everything else | wakes Triton |
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any, Final

from trierarch.orchestrator.gateway.upstream import Endpoints, Unavailable
from trierarch.orchestrator.sleep.asgi import (
    Answer,
    Call,
    HungUp,
    Receive,
    Scope,
    Send,
    TooLarge,
    read,
    respond,
    wait_for_hang_up,
)
from trierarch.orchestrator.sleep.house import FORGETFUL, House, Resident, UnknownEngine
from trierarch.orchestrator.sleep.http_exchange import HOP_BY_HOP, BrokenOff, Head, exchange
from trierarch.orchestrator.sleep.kept_bytes import TooManyBytes
from trierarch.orchestrator.sleep.known_answers import KnownAnswers
from trierarch.orchestrator.sleep.unanswered import Unanswered, ask

logger = logging.getLogger(__name__)

HEALTH: Final = re.compile(r"/v2/health/(live|ready)")
MODEL_HEALTH: Final = re.compile(r"/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?/ready")
INDEX: Final = "/v2/repository/index"
UNCHANGING: Final = re.compile(r"/v2|/v2/models/(?!stats$)[^/]+(/versions/[^/]+)?(/config)?")
ROOT: Final = "/v2"
FORGOTTEN: Final = re.compile(r"/v2/\w+sharedmemory/region/[^/]+/register")
EVENTS: Final = b"text/event-stream"


class Cut(Exception):
    """The server died when a part was answered: the rest will not come."""


class HttpFront:
    """One per House."""

    def __init__(self, house: House) -> None:
        """Answer for its residents."""
        self._house = house
        self._known = KnownAnswers[Answer]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. One whose answer is cut leaves by an exception, at which the connection ends."""
        assert scope["type"] == "http"
        kept = self._house.kept
        try:
            call = await read(scope, receive, kept)
        except HungUp:
            return
        except TooLarge as error:
            await respond(send, Answer.error(413, str(error), (b"connection", b"close")))
            return
        except TooManyBytes as error:
            await respond(send, Answer.error(503, str(error), (b"connection", b"close"), (b"retry-after", b"1")))
            return
        try:
            await self._until_hang_up(self._answer(call, send), receive)
        finally:
            kept.give_back(len(call.body))

    async def _until_hang_up(self, answering: Coroutine[Any, Any, None], receive: Receive) -> None:
        work = asyncio.ensure_future(answering)
        hang_up = asyncio.ensure_future(wait_for_hang_up(receive))
        try:
            await asyncio.wait({work, hang_up}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hang_up.cancel()
            if not work.done():
                work.cancel()
        try:
            await work
        except asyncio.CancelledError:
            if not work.cancelled():
                raise
        except Cut:
            raise
        except Exception:
            logger.exception("a request failed for a reason of ours")
            raise

    async def _answer(self, call: Call, send: Send) -> None:
        try:
            resident = self._house.find(call.engine)
        except UnknownEngine as error:
            await respond(send, Answer.error(404, str(error)))
            return
        if FORGOTTEN.fullmatch(call.path):
            await respond(send, Answer.error(400, FORGETFUL))
            return
        if call.path != ROOT and not call.path.startswith(f"{ROOT}/"):
            await respond(send, Answer.error(404, f"nothing is served at this address; {ROOT} is where Triton's begin"))
            return
        is_unchanging = UNCHANGING.fullmatch(call.path) is not None
        key = (resident.name, call.method, call.target, call.body)
        answer = self._of_ours(call, resident) or (self._known.get(key) if is_unchanging else None)
        if answer is not None:
            await respond(send, answer)
            return
        passing = Passing(call, resident, send)
        try:
            await ask(resident.sleeper, resident.figures, passing.pass_on)
        except Unavailable as error:
            after = str(max(1, round(error.retry_after))).encode()
            await respond(send, Answer.error(503, error.reason, (b"retry-after", after)))
        except Unanswered as error:
            await respond(send, Answer.error(503, f"the server broke off before it answered: {error}"))
        if is_unchanging and passing.answer is not None and passing.answer.status == 200:
            self._known.put(key, passing.answer, len(passing.answer.body))

    def _of_ours(self, call: Call, resident: Resident) -> Answer | None:
        """The answer, if it needs no server: to who asks for health or for the index of models."""
        if call.path == INDEX:
            index = [
                {"name": name, "version": version, "state": "READY"}
                for name, versions in sorted(resident.models.items())
                for version in sorted(versions)
            ]
            return Answer(200, [(b"content-type", b"application/json")], json.dumps(index).encode())
        if call.method not in ("GET", "HEAD"):
            return None
        if match := HEALTH.fullmatch(call.path):
            is_well = match[1] == "live" or self._house.is_ready
        elif match := MODEL_HEALTH.fullmatch(call.path):
            is_well = resident.is_model_ready(match["model"], match["version"] or "")
        else:
            return None
        return Answer(200 if is_well else 400, [], b"")  # as Triton says it


class Passing:
    """A call on its way to the server, and the answer on its way back."""

    def __init__(self, call: Call, resident: Resident, send: Send) -> None:
        """Nothing is sent before `pass_on`."""
        self._call, self._resident, self._send = call, resident, send
        self._pieces: list[bytes] = []
        self._head: Head | None = None
        self.answer: Answer | None = None
        """The answer, when it has been passed on to its end."""

    async def pass_on(self, endpoints: Endpoints) -> None:
        """Ask the server at `endpoints`.

        Raises:
            Unanswered: it broke off, and nothing was passed on.
            Cut: it broke off when something had been passed on.
        """
        call = self._call
        try:
            async with aclosing(exchange(endpoints.http, call.method, call.target, call.headers, call.body)) as parts:
                async for part in parts:
                    if self._head is None and self._resident.sleeper.is_dead(endpoints):
                        raise BrokenOff("it died")
                    await self._pass_back(part)
        except BrokenOff as error:
            if self._head is None:
                raise Unanswered(str(error)) from error
            await self._cut()
            raise Cut(str(error)) from error
        assert self._head is not None
        await self._send({"type": "http.response.body"})
        self.answer = Answer(self._head.status, self._head.headers, b"".join(self._pieces))

    async def _pass_back(self, part: Head | bytes) -> None:
        if isinstance(part, Head):
            self._head = Head(part.status, [header for header in part.headers if header[0] not in HOP_BY_HOP])
            await self._send({"type": "http.response.start", "status": part.status, "headers": self._head.headers})
            return
        if UNCHANGING.fullmatch(self._call.path):
            self._pieces.append(part)
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def _cut(self) -> None:
        """Tell whoever reads events; everyone sees that the connection ends before the answer does."""
        assert self._head is not None
        if any(name == b"content-type" and value.startswith(EVENTS) for name, value in self._head.headers):
            event = json.dumps({"error": "the server went away while it was answering; ask again"})
            await self._send(
                {"type": "http.response.body", "body": f"\n\ndata: {event}\n\n".encode(), "more_body": True}
            )
