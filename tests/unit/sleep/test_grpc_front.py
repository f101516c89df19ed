"""The gRPC door over a real gRPC server in a process of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
import tritonclient.grpc.service_pb2 as messages

from support.sleeping import Sleeping, sleeping
from trierarch.orchestrator.sleep import client_messages, kept_bytes
from trierarch.orchestrator.sleep.kept_bytes import KeptBytes
from trierarch.orchestrator.sleep.lifecycle import Phase

TRITON = "/inference.GRPCInferenceService/"
ANY_LENGTH = (("grpc.max_receive_message_length", -1),)


@asynccontextmanager
async def grpc_sleeping(**options: Any) -> AsyncIterator[tuple[Sleeping, grpc.aio.Channel]]:
    async with (
        sleeping(is_grpc=True, **options) as it,
        grpc.aio.insecure_channel(it.front.endpoints.grpc, options=ANY_LENGTH) as to,
    ):
        yield it, to


async def ask(to: grpc.aio.Channel, method: str, request: bytes = b"") -> bytes:
    answer: bytes = await to.unary_unary(method)(request)
    return answer


async def read_all(call: Any) -> list[bytes]:
    return [message async for message in call]


async def wait_for(to: grpc.aio.Channel, what: str) -> None:
    """Until the server that is awake has logged it."""
    while what not in json.loads(await ask(to, "/t/Log")):
        await asyncio.sleep(0.01)


def test_a_unary_call_passes_both_ways_with_its_metadata() -> None:
    async def story() -> None:
        async with grpc_sleeping() as (_, to):
            request = bytes(range(256)) * 20_000
            assert len(request) > 4 << 20, "more than gRPC takes unasked"
            call = to.unary_unary("/t/Echo")(request, metadata=(("x-mine", "yes"),), timeout=30)
            assert await call == request
            initial = dict(await call.initial_metadata())
            assert (initial["x-seen"], initial["x-raw-bin"]) == ("yes", b"\x00\xff")
            trailing = dict(await call.trailing_metadata())
            assert trailing == {"x-end": "over", "x-left": "True"}, "a deadline passes too"

    asyncio.run(story())


def test_a_status_passes_with_its_reason_and_metadata() -> None:
    async def story() -> None:
        async with grpc_sleeping() as (_, to):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await ask(to, "/t/Fail")
            assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert failed.value.details() == "as you wished"
            assert dict(failed.value.trailing_metadata()) == {"x-why": "because"}

    asyncio.run(story())


def test_a_stream_goes_both_ways_at_once() -> None:
    async def story() -> None:
        async with grpc_sleeping() as (it, to):
            call = to.stream_stream("/t/Stream")()
            for count in (3, 1, 2):
                await call.write(json.dumps({"count": count, "seconds": 0.0}).encode())
                answers = [int(await call.read()) for _ in range(count)]
                assert answers == list(range(count)), "before the next question was asked"
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert it.front.keeper.figures["only"].num_held == 1, "the first wake, and nobody after it"

    asyncio.run(story())


def test_calls_that_come_while_it_wakes_are_answered() -> None:
    async def story() -> None:
        async with grpc_sleeping() as (it, to):
            await it.put_to_sleep()
            it.server.may_start.clear()
            asking = [asyncio.create_task(ask(to, "/t/Echo", str(index).encode())) for index in range(10)]
            await it.until(lambda: it.front.keeper.figures["only"].lifecycle.num_held == 10, "all held")
            it.server.may_start.set()
            assert await asyncio.gather(*asking) == [str(index).encode() for index in range(10)]
            assert it.server.starts == 2

    asyncio.run(story())


def test_a_cancel_reaches_the_server_and_whoever_only_waits_is_let_go() -> None:
    async def story() -> None:
        async with grpc_sleeping() as (it, to):
            call = to.unary_unary("/t/Silence")(b"")
            await wait_for(to, "/t/Silence")
            call.cancel()
            await wait_for(to, "cancelled")
            await it.put_to_sleep()
            it.server.may_start.clear()
            lifecycle = it.front.keeper.figures["only"].lifecycle
            waiting = to.unary_unary("/t/Silence")(b"")
            await it.until(lambda: lifecycle.num_held == 1, "held")
            waiting.cancel()
            await it.until(lambda: lifecycle.num_held == 0, "let go")
            assert it.phase is Phase.WAKING

    asyncio.run(story())


def test_a_call_whose_server_dies_unanswered_is_asked_again_with_all_its_messages() -> None:
    async def story() -> None:
        async with grpc_sleeping() as (it, to):
            call = to.stream_stream("/t/Stream")()
            for count in (1, 2):
                await call.write(json.dumps({"count": count, "seconds": 0.0, "waits": True}).encode())
            await wait_for(to, "/t/Stream")
            it.server.murder()
            await call.write(json.dumps({"count": 1, "seconds": 0.0}).encode())
            await call.done_writing()
            await it.until(lambda: it.server.starts == 2, "brought back")
            it.server.go_on()
            assert [int(message) async for message in call] == [0, 0, 1, 0]
            assert it.server.starts == 2
            assert it.front.keeper.figures["only"].num_retries == 1

    asyncio.run(story())


def test_who_was_midway_gets_a_status() -> None:
    async def story() -> None:
        async with grpc_sleeping() as (it, to):
            call = to.unary_stream("/t/Stream")(json.dumps({"count": 100_000, "seconds": 0.01}).encode())
            await anext(aiter(call))
            it.server.murder()
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await read_all(call)
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "went away" in failed.value.details()

    asyncio.run(story())


def test_a_refusal_says_when_to_come_back() -> None:
    async def story() -> None:
        async with grpc_sleeping(max_held_requests=1) as (it, to):
            await it.put_to_sleep()
            it.server.may_start.clear()
            held = asyncio.create_task(ask(to, "/t/Echo", b"1"))
            await it.until(lambda: it.front.keeper.figures["only"].lifecycle.num_held == 1, "held")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(to, "/t/Echo", b"2")
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert int(dict(refused.value.trailing_metadata())["retry-after"]) >= 1
            it.server.may_start.set()
            assert await held == b"1"

    asyncio.run(story())


def test_health_is_told_as_triton_tells_it_and_wakes_nobody() -> None:
    async def story() -> None:
        async with grpc_sleeping() as (it, to):
            await it.put_to_sleep()
            live = messages.ServerLiveResponse.FromString(await ask(to, TRITON + "ServerLive"))
            ready = messages.ServerReadyResponse.FromString(await ask(to, TRITON + "ServerReady"))
            assert live.live
            assert ready.ready
            for name, version, is_ready in (("m", "", True), ("m", "1", True), ("m", "2", False), ("other", "", False)):
                request = messages.ModelReadyRequest(name=name, version=version).SerializeToString()
                answer = messages.ModelReadyResponse.FromString(await ask(to, TRITON + "ModelReady", request))
                assert answer.ready is is_ready
            assert await ask(to, "/grpc.health.v1.Health/Check") == b"\x08\x01", "SERVING"
            assert it.server.starts == 1

    asyncio.run(story())


def test_what_never_changes_is_asked_once() -> None:
    async def story() -> None:
        async with grpc_sleeping() as (it, to):
            for request in (b"one", b"another"):
                answer = await ask(to, TRITON + "ModelMetadata", request)
                assert answer == (TRITON + "ModelMetadata").encode() + request
                await it.put_to_sleep()
                starts = it.server.starts
                assert await ask(to, TRITON + "ModelMetadata", request) == answer
                assert it.server.starts == starts
            await ask(to, TRITON + "ModelInfer", b"one")
            await it.put_to_sleep()
            await ask(to, TRITON + "ModelInfer", b"one")
            assert it.server.starts > starts + 1

    asyncio.run(story())


def test_a_stream_that_says_nothing_wakes_nobody() -> None:
    async def story() -> None:
        async with grpc_sleeping() as (it, to):
            await it.put_to_sleep()
            call = to.stream_stream("/t/Stream")()
            assert await ask(to, TRITON + "ServerLive") == b"\x08\x01"
            assert it.phase is Phase.ASLEEP
            await call.write(json.dumps({"count": 1, "seconds": 0.0}).encode())
            assert await call.read() == b"0"
            call.cancel()
            await it.put_to_sleep()

    asyncio.run(story())


def test_what_is_too_much_to_keep_is_refused_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_bytes, "MAX_KEPT_BYTES", 100)

    async def story() -> None:
        async with grpc_sleeping() as (it, to):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(to, "/t/Echo", b"x" * 101)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await ask(to, "/t/Echo", b"x" * 99) == b"x" * 99
            assert it.front.house.kept.num_bytes == 0

    asyncio.run(story())


def test_shared_memory_that_would_be_forgotten_is_refused() -> None:
    async def story() -> None:
        async with grpc_sleeping() as (_, to):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(to, TRITON + "SystemSharedMemoryRegister")
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    asyncio.run(story())


def test_an_unknown_engine_is_not_found() -> None:
    async def story() -> None:
        async with grpc_sleeping() as (_, to):
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await to.unary_unary("/t/Echo")(b"", metadata=(("x-trierarch-engine", "other"),))
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND

    asyncio.run(story())


def test_messages_are_read_again_until_something_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_messages, "MAX_REQUEST_BYTES", 10)

    async def source(*parts: bytes) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    count = KeptBytes()

    async def story() -> None:
        kept = client_messages.ClientMessages(count)
        await kept.pump(source(b"a", b"b"))
        assert [message async for message in kept.read()] == [b"a", b"b"]
        first = kept.read()
        assert await anext(first) == b"a"
        assert [message async for message in kept.read()] == [b"a", b"b"]
        assert [message async for message in first] == [], "whoever read before gets no more"
        kept.answered()
        assert not kept.can_be_read_again

        long = client_messages.ClientMessages(count)
        pump = asyncio.create_task(long.pump(source(*[b"12345"] * 100)))
        assert len([message async for message in long.read()]) == 100
        await pump
        assert not long.can_be_read_again, "too much to keep"
        for one in (kept, long):
            one.close()
        assert count.num_bytes == 0

    asyncio.run(story())
