"""GrpcFront: Triton's gRPC door while Triton may be asleep. Messages pass as the bytes they are, whatever the service.

On the wire a unary call is a stream of one message each way, so every call is passed on as a stream. What wakes Triton and
what is answered here is as in `http_front`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

import grpc
import grpc.aio

from trierarch.orchestrator.gateway.upstream import ENGINE_HEADER, Endpoints, Unavailable
from trierarch.orchestrator.sleep.client_messages import ClientMessages
from trierarch.orchestrator.sleep.health_messages import FALSE, NOT_SERVING, SERVING, TRUE, model_asked_for
from trierarch.orchestrator.sleep.house import FORGETFUL, House, Resident, UnknownEngine
from trierarch.orchestrator.sleep.kept_bytes import TooManyBytes
from trierarch.orchestrator.sleep.known_answers import KnownAnswers
from trierarch.orchestrator.sleep.unanswered import Unanswered, ask

SERVICE: Final = "/inference.GRPCInferenceService/"
HEALTH: Final = {SERVICE + name: name for name in ("ServerLive", "ServerReady", "ModelReady")} | {
    "/grpc.health.v1.Health/Check": "Check"
}
"""Method → its name."""
UNCHANGING: Final = frozenset(
    SERVICE + name for name in ("ServerMetadata", "ModelMetadata", "ModelConfig", "RepositoryIndex")
)
FORGOTTEN: Final = frozenset({SERVICE + "SystemSharedMemoryRegister", SERVICE + "CudaSharedMemoryRegister"})
OPTIONS: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
"""Triton decides what is too large."""
BROKEN_OFF: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})
"""What gRPC itself says when a connection ends, while it reads, and while it writes."""
NOTICE_SECONDS: Final = 0.02
"""From a connection's end until its channel knows of it."""
RETRY_AFTER: Final = "retry-after"
"""Trailing metadata: seconds."""
RESERVED: Final = ("grpc-", ":")
"""Prefixes of metadata that gRPC itself makes afresh on each connection."""
OF_ONE_CONNECTION: Final = frozenset({"user-agent", "te", "content-type"})

Call = Any
"""A `grpc.aio.StreamStreamCall` of bytes."""
Context = Any
"""A `grpc.aio.ServicerContext` of bytes."""
Metadata = tuple[tuple[str, str | bytes], ...]


class GrpcFront(grpc.GenericRpcHandler):  # type: ignore[misc]  # no type information
    """One per House."""

    def __init__(self, house: House) -> None:
        """Answer for its residents."""
        self._house = house
        self._known = KnownAnswers[bytes]()
        self._channels: dict[str, tuple[Endpoints, grpc.aio.Channel]] = {}
        """By resident, of the server that is awake, or was last."""

    def service(self, details: Any) -> Any:
        """gRPC asks who answers a method: we do, whatever it is."""
        method: str = details.method

        async def answer(messages: AsyncIterator[bytes], context: Context) -> None:
            await self._answer(method, messages, context)

        return grpc.stream_stream_rpc_method_handler(answer)

    async def close(self) -> None:
        """Close what leads to servers."""
        for _, channel in self._channels.values():
            await channel.close()

    async def _answer(self, method: str, messages: AsyncIterator[bytes], context: Context) -> None:
        metadata = _passing(context.invocation_metadata() or ())
        try:
            resident = self._house.find(_engine(metadata))
        except UnknownEngine as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        is_unchanging = method in UNCHANGING
        first = await anext(messages, b"") if is_unchanging or method in HEALTH else None
        if first is not None:
            key = (resident.name, method, first)
            answer = self._known.get(key) if is_unchanging else self._health(method, first, resident)
            if answer is not None:
                await context.write(answer)
                return
        if method in FORGOTTEN:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, FORGETFUL)
        passing = Passing(method, metadata, context, self._channel, ClientMessages(self._house.kept))
        try:
            await passing.run(_behind(first, messages), resident)
        except Unavailable as error:
            context.set_trailing_metadata(((RETRY_AFTER, str(max(1, round(error.retry_after)))),))
            await context.abort(grpc.StatusCode.UNAVAILABLE, error.reason)
        except Unanswered as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the server broke off before it answered: {error}")
        except TooManyBytes as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        if is_unchanging and passing.last is not None:
            self._known.put(key, passing.last, len(passing.last))

    def _health(self, method: str, request: bytes, resident: Resident) -> bytes:
        """The answer to one of HEALTH."""
        name = HEALTH[method]
        if name == "Check":
            return SERVING if self._house.is_ready else NOT_SERVING
        if name == "ModelReady":
            return TRUE if resident.is_model_ready(*model_asked_for(request)) else FALSE
        return TRUE if name == "ServerLive" or self._house.is_ready else FALSE

    def _channel(self, resident: Resident, endpoints: Endpoints) -> grpc.aio.Channel:
        """The one to the server at `endpoints`."""
        known = self._channels.get(resident.name)
        if known is not None and known[0] is endpoints:
            return known[1]
        channel = grpc.aio.insecure_channel(endpoints.grpc, options=OPTIONS)
        self._channels[resident.name] = endpoints, channel
        return channel


class Passing:
    """A call on its way to the server, and the answers on their way back."""

    def __init__(
        self,
        method: str,
        metadata: Metadata,
        context: Context,
        channel: Callable[[Resident, Endpoints], grpc.aio.Channel],
        messages: ClientMessages,
    ) -> None:
        """Nothing is sent before `run`."""
        self._method, self._metadata, self._context, self._channel = method, metadata, context, channel
        self._messages = messages
        self._has_begun = False
        self.last: bytes | None = None
        """The last message that was passed back."""

    async def run(self, messages: AsyncIterator[bytes], resident: Resident) -> None:
        """Pass the client's messages on, and back what the server answers.

        Raises:
            Unavailable, Unanswered: as `ask` does.
            TooManyBytes: the messages are too many to be kept.
        """
        pump = asyncio.ensure_future(self._messages.pump(messages))
        work = asyncio.ensure_future(self._work(resident))
        try:
            await asyncio.wait({pump, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                pump.result()
            await work
        finally:
            for task in (pump, work):
                task.cancel()
            await asyncio.gather(pump, work, return_exceptions=True)
            self._messages.close()

    async def _work(self, resident: Resident) -> None:
        await self._messages.begin()  # a stream that says nothing wakes nobody
        await ask(resident.sleeper, resident.figures, lambda endpoints: self._pass_on(resident, endpoints))

    async def _pass_on(self, resident: Resident, endpoints: Endpoints) -> None:
        """Ask the server at `endpoints`, and end the client's call as the server ends ours.

        Raises:
            Unanswered: it broke off, and nothing was passed back.
        """
        if not self._messages.can_be_read_again:
            raise Unanswered("the stream is too long to be sent again")
        channel = self._channel(resident, endpoints)
        call = channel.stream_stream(self._method)(
            self._messages.read(), metadata=self._metadata, timeout=self._context.time_remaining()
        )
        try:
            async for message in call:
                if not self._has_begun:
                    await self._begin(call, resident.sleeper.is_dead(endpoints))
                self.last = message
                await self._context.write(message)
        except grpc.aio.AioRpcError:
            pass  # told by its code, below
        finally:
            call.cancel()
        await self._end(call, await _broke_off(call, channel) or resident.sleeper.is_dead(endpoints))

    async def _begin(self, call: Call, is_dead: bool) -> None:
        """The first message has come."""
        if is_dead:
            raise Unanswered("it died")
        self._has_begun = True
        self._messages.answered()
        await self._context.send_initial_metadata(_passing(await call.initial_metadata()))

    async def _end(self, call: Call, has_broken_off: bool) -> None:
        code = await call.code()
        if code is not grpc.StatusCode.OK and has_broken_off:
            if not self._has_begun:
                raise Unanswered(await call.details() or code.name)
            await self._context.abort(
                grpc.StatusCode.UNAVAILABLE, "connection reset: the server went away while it was answering; ask again"
            )
        self._context.set_trailing_metadata(_passing(await call.trailing_metadata()))
        if code is not grpc.StatusCode.OK:
            await self._context.abort(code, await call.details())


async def _broke_off(call: Call, channel: grpc.aio.Channel) -> bool:
    """Whether a call ended with its connection, and not because the server said so."""
    if await call.code() not in BROKEN_OFF:
        return False
    await asyncio.sleep(NOTICE_SECONDS)
    return channel.get_state() is not grpc.ChannelConnectivity.READY


async def _behind(first: bytes | None, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first is not None:
        yield first
    async for message in messages:
        yield message


def _passing(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """What is the caller's and not the connection's."""
    return tuple(
        (name, value) for name, value in metadata if name not in OF_ONE_CONNECTION and not name.startswith(RESERVED)
    )


def _engine(metadata: Metadata) -> str | None:
    return next((str(value) for name, value in metadata if name == ENGINE_HEADER), None)
