"""Triton: one gRPC stream a request. Cancelling the stream cancels the work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc.aio

from trierarch.orchestrator.gateway.errors import ApiError
from trierarch.orchestrator.gateway.triton_messages import STREAM_INFER, service_pb2
from trierarch.orchestrator.gateway.upstream import ENGINE_HEADER, Endpoints
from trierarch.python_backend.triton.status import RelayedError, StatusCode, untag

_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    # A Triton that comes back is to be found at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class Triton:
    """Streams to whatever Triton a request is sent to; connections are kept. For one event loop."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}  # address -> its connection

    async def close(self) -> None:
        """Cut what is open."""
        for channel in self._channels.values():
            await channel.close(None)
        self._channels.clear()

    @asynccontextmanager
    async def responses(self, endpoints: Endpoints, request: Any) -> AsyncIterator[AsyncIterator[Any]]:
        """Send a ModelInferRequest; iterate over its ModelInferResponses. Leaving early cancels it.

        Raises, while it is iterated over:
            RelayedError: what the model, or Triton for it, answered.
            ApiError: there is no model of that name.
        """
        metadata = ((ENGINE_HEADER, endpoints.engine),) if endpoints.engine else None
        call = self._channel(endpoints.grpc).stream_stream(
            STREAM_INFER,
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )(metadata=metadata)
        responses = _responses(call, request)
        try:
            yield responses
        finally:
            call.cancel()
            await responses.aclose()

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, options=_OPTIONS)
        return self._channels[address]


async def _responses(call: Any, request: Any) -> AsyncGenerator[Any]:
    try:
        await call.write(request)
        await call.done_writing()
        while (message := await call.read()) is not grpc.aio.EOF:
            if message.error_message:
                raise _answered(message.error_message)
            response = message.infer_response
            yield response
            if response.parameters["triton_final_response"].bool_param:
                return
        # An end without a last response has a status that says why.
        raise _broken(await call.code(), await call.details())
    except grpc.aio.AioRpcError as error:
        raise _broken(error.code(), error.details()) from None
    except asyncio.InvalidStateError:  # written to after the connection was refused
        raise _broken(await call.code(), await call.details()) from None


def _answered(message: str) -> RelayedError | ApiError:
    tagged = untag(message)
    if tagged is not None:
        return tagged
    if "unknown model" in message:
        return ApiError(404, message, param="model", code="model_not_found")
    # Triton's own refusals come without a status; those that name an input are about what the gateway sent.
    return RelayedError(StatusCode.UNAVAILABLE if "not ready" in message else StatusCode.INTERNAL, message)


def _broken(code: grpc.StatusCode, details: str | None) -> RelayedError:
    if code is grpc.StatusCode.UNAVAILABLE:
        return RelayedError(StatusCode.UNAVAILABLE, "the model's server cannot be reached")
    if code is grpc.StatusCode.CANCELLED:
        return RelayedError(StatusCode.CANCELLED, "the model's server cancelled the request")
    return RelayedError(StatusCode.INTERNAL, f"the model's server failed: {details or code.name}")
