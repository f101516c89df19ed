"""A server that answers as Triton's gRPC door does, in outline; messages are JSON. Run by `stand_in.StandIn`.

    /t/Echo      what came, with metadata of its own around it
    /t/Stream    for each message {"count", "seconds"}: so many numbers, that long before each; with "waits", after SIGUSR1
    /t/Fail      a status and a reason
    /t/Silence   nothing, until it is cancelled
    /t/Log       what has happened: a list of methods, `cancelled` among them
    anything else: its own name, and the request

It tells its port, and answers until SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

LOG: list[str] = []
MAY_GO_ON = asyncio.Event()


async def echo(messages: AsyncIterator[bytes], context: Any) -> None:
    metadata = dict(context.invocation_metadata())
    await context.send_initial_metadata((("x-seen", metadata.get("x-mine", "")), ("x-raw-bin", b"\x00\xff")))
    async for message in messages:
        await context.write(message)
    context.set_trailing_metadata((("x-end", "over"), ("x-left", str(context.time_remaining() is not None))))


async def stream(messages: AsyncIterator[bytes], context: Any) -> None:
    async for message in messages:
        asked = json.loads(message)
        if asked.get("waits"):
            await MAY_GO_ON.wait()
        for number in range(asked["count"]):
            await asyncio.sleep(asked["seconds"])
            await context.write(json.dumps(number).encode())


async def fail(messages: AsyncIterator[bytes], context: Any) -> None:
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "as you wished", (("x-why", "because"),))


async def silence(messages: AsyncIterator[bytes], context: Any) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        LOG.append("cancelled")
        raise


async def log(messages: AsyncIterator[bytes], context: Any) -> None:
    await context.write(json.dumps(LOG).encode())


METHODS = {"/t/Echo": echo, "/t/Stream": stream, "/t/Fail": fail, "/t/Silence": silence, "/t/Log": log}


class Answers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, details: Any) -> Any:
        method: str = details.method
        LOG.append(method)

        async def name(messages: AsyncIterator[bytes], context: Any) -> None:
            async for message in messages:
                await context.write(method.encode() + message)

        return grpc.stream_stream_rpc_method_handler(METHODS.get(method, name))


async def _serve(tell: Callable[[int], object]) -> None:
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1),))
    server.add_generic_rpc_handlers((Answers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    is_over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, is_over.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, MAY_GO_ON.set)
    tell(port)
    await is_over.wait()
    await server.stop(1.0)


def serve(tell: Callable[[int], object]) -> None:
    asyncio.run(_serve(tell))
