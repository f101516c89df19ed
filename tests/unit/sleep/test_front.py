"""The HTTP door over real processes that start, stop and are killed in milliseconds."""

from __future__ import annotations

import asyncio
import os
import select

import httpx
import pytest

from support.sleeping import ANY_PORTS, PATIENCE_SECONDS, event, expected, sleeping, texts
from support.stand_in import StandIn
from trierarch.builder.errors import ResourceError
from trierarch.orchestrator.metrics import Metrics
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.sleep import asgi, kept_bytes
from trierarch.orchestrator.sleep.front import opened
from trierarch.orchestrator.sleep.lifecycle import Phase
from trierarch.orchestrator.sleep.rest import Rest


def test_it_sleeps_when_nobody_asks_and_wakes_for_the_first_who_does() -> None:
    async def story() -> None:
        async with sleeping(idle_timeout=0.05) as it:
            await it.asleep()
            assert it.server.pid is None
            assert await it.stream("hello") == expected("hello")
            await it.asleep()
            assert (it.server.starts, it.server.stops) == (2, 2)

    asyncio.run(story())


def test_those_who_come_while_it_wakes_wait_for_it_together() -> None:
    async def story() -> None:
        async with sleeping() as it:
            await it.put_to_sleep()
            it.server.may_start.clear()
            asking = [asyncio.create_task(it.stream(str(index))) for index in range(20)]
            await it.until(lambda: it.front.keeper.figures["only"].lifecycle.num_held == 20, "all held")
            it.server.may_start.set()
            assert await asyncio.gather(*asking) == [expected(str(index)) for index in range(20)]
            assert it.server.starts == 2

    asyncio.run(story())


def test_a_request_passes_as_it_is_and_so_does_the_answer() -> None:
    async def story() -> None:
        async with sleeping() as it:
            body = bytes(range(256)) * 1000
            headers = {"inference-header-content-length": "12", "x-twice": "a, b", "connection": "keep-alive"}
            response = await it.client.post("/v2/echo/a%2Fb?q=1&q=%20", content=body, headers=headers)
            seen = response.json()
            assert (seen["method"], seen["target"]) == ("POST", "/v2/echo/a%2Fb?q=1&q=%20")
            assert seen["body"] == body.decode("latin-1")
            kept = dict(seen["headers"])
            assert kept["inference-header-content-length"] == "12"
            assert kept["x-twice"] == "a, b"
            assert kept["host"] == it.client.base_url.netloc.decode()
            assert kept["content-length"] == str(len(body))
            assert response.headers["x-of"] == "stand-in"
            error = await it.client.post("/v2/error", json={"status": 429})
            assert (error.status_code, error.json()) == (429, {"error": "as you wished"})

    asyncio.run(story())


def test_events_come_one_by_one_and_not_at_the_end() -> None:
    async def story() -> None:
        async with sleeping() as it:
            body = {"text_input": "slow", "max_tokens": 100_000, "seconds": 0.01}
            async with it.client.stream("POST", "/v2/models/m/generate_stream", json=body) as response:
                lines = response.aiter_lines()
                assert event(await anext(lines))["text_output"] == "slow.0"
                assert it.front.keeper.figures["only"].lifecycle.num_leases == 1

            async def hung_up() -> bool:
                return any(what == "hung up" for what, _ in await it.log())

            while not await hung_up():
                await asyncio.sleep(0.01)

    asyncio.run(story())


def test_a_hang_up_reaches_a_server_that_says_nothing() -> None:
    async def story() -> None:
        async with sleeping() as it:
            asking = asyncio.create_task(it.client.get("/v2/silence"))
            while ["GET", "/v2/silence"] not in await it.log():
                await asyncio.sleep(0.01)
            asking.cancel()
            while ["hung up", "/v2/silence"] not in await it.log():
                await asyncio.sleep(0.01)

    asyncio.run(story())


def test_who_hangs_up_while_he_waits_is_forgotten_at_once() -> None:
    async def story() -> None:
        async with sleeping() as it:
            await it.put_to_sleep()
            it.server.may_start.clear()
            lifecycle = it.front.keeper.figures["only"].lifecycle
            asking = asyncio.create_task(it.stream("never mind"))
            await it.until(lambda: lifecycle.num_held == 1, "held")
            asking.cancel()
            await it.until(lambda: lifecycle.num_held == 0, "let go")
            assert it.phase is Phase.WAKING, "before it was awake"

    asyncio.run(story())


def test_waiting_is_bounded_and_tells_when_to_come_back() -> None:
    async def story() -> None:
        async with sleeping(max_held_requests=2) as it:
            await it.put_to_sleep()
            it.server.may_start.clear()
            held = [asyncio.create_task(it.stream(str(index))) for index in range(2)]
            await it.until(lambda: it.front.keeper.figures["only"].lifecycle.num_held == 2, "both held")
            refused = await it.client.post("/v2/models/m/generate_stream", json={})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert "2 requests wait" in refused.json()["error"]
            it.server.may_start.set()
            assert await asyncio.gather(*held) == [expected("0"), expected("1")]

    asyncio.run(story())


def test_waiting_has_a_deadline() -> None:
    async def story() -> None:
        async with sleeping(wake_timeout=0.1) as it:
            await it.put_to_sleep()
            it.server.may_start.clear()
            refused = await it.client.post("/v2/models/m/generate_stream", json={})
            assert refused.status_code == 503
            assert "within 0.1 s" in refused.json()["error"]

    asyncio.run(story())


def test_health_is_told_and_wakes_nobody() -> None:
    async def story() -> None:
        async with sleeping() as it:
            await it.put_to_sleep()
            for path, status in {
                "/v2/health/live": 200,
                "/v2/health/ready": 200,
                "/v2/models/m/ready": 200,
                "/v2/models/m/versions/1/ready": 200,
                "/v2/models/m/versions/2/ready": 400,
                "/v2/models/other/ready": 400,
            }.items():
                assert (await it.client.get(path)).status_code == status, path
            index = await it.client.post("/v2/repository/index", json={"ready": True})
            assert index.json() == [{"name": "m", "version": "1", "state": "READY"}]
            assert it.phase is Phase.ASLEEP
            assert it.server.starts == 1

    asyncio.run(story())


def test_who_asks_for_what_no_triton_has_wakes_nobody() -> None:
    async def story() -> None:
        async with sleeping() as it:
            await it.put_to_sleep()
            for path in ("/", "/favicon.ico", "/healthz", "/v2x/models/m"):
                assert (await it.client.get(path)).status_code == 404
            assert (await it.client.post("/")).status_code == 404
            assert it.server.starts == 1

    asyncio.run(story())


def test_what_never_changes_is_asked_once() -> None:
    async def story() -> None:
        async with sleeping() as it:
            for path in ("/v2", "/v2/models/m", "/v2/models/m/config", "/v2/models/m/versions/1"):
                first = await it.client.get(path)
                await it.put_to_sleep()
                starts = it.server.starts
                again = await it.client.get(path)
                assert (again.status_code, again.content) == (first.status_code, first.content) == (200, path.encode())
                assert again.headers["x-of"] == "stand-in"
                assert it.server.starts == starts
            await it.client.get("/v2/models/stats")
            await it.put_to_sleep()
            starts = it.server.starts
            await it.client.get("/v2/models/stats")
            assert it.server.starts == starts + 1, "figures do change"

    asyncio.run(story())


def test_the_metrics_page_is_there_awake_or_asleep_and_keeps_nobody_awake() -> None:
    async def story() -> None:
        async with sleeping(idle_timeout=0.2) as it:
            url = it.front.endpoints.metrics
            async with it.front.keeper.sleepers["only"].lease():
                awake = (await it.client.get(url)).text
                starts = it.server.starts
            assert awake.startswith("/metrics"), "Triton's own page, from a stand-in"
            while it.phase is not Phase.ASLEEP:
                await it.client.get(url)
            page = Metrics.parse((await it.client.get(url)).text)
            assert page.value("trierarch_sleep_wakes_total", engine="only") == starts
            assert page.value("trierarch_sleep_phase", phase="asleep") == 1
            assert page.value("trierarch_sleep_held_seconds_count", engine="only") == starts
            ran = page.value("trierarch_sleep_replica_seconds_total", engine="only")
            assert 0 < ran < page.value("trierarch_sleep_always_on_seconds_total", engine="only")
            assert it.server.starts == starts

    asyncio.run(story())


def test_who_was_told_nothing_yet_hears_only_the_next_server() -> None:
    async def story() -> None:
        async with sleeping() as it:
            asking = asyncio.create_task(it.client.get("/v2/silence"))
            while ["GET", "/v2/silence"] not in await it.log():
                await asyncio.sleep(0.005)
            it.server.murder()
            await it.until(lambda: it.server.starts == 2, "brought back")
            while ["GET", "/v2/silence"] not in await it.log():
                await asyncio.sleep(0.005)
            assert it.front.keeper.figures["only"].num_retries == 1
            asking.cancel()

    asyncio.run(story())


def test_who_asks_next_hears_of_a_death_that_the_loop_was_not_told_of_yet() -> None:
    async def story() -> None:
        async with sleeping() as it:
            sleeper = it.front.keeper.sleepers["only"]
            async with sleeper.lease() as before:
                pass
            ended = select.poll()
            assert it.server.pid is not None
            descriptor = os.pidfd_open(it.server.pid)
            ended.register(descriptor, select.POLLIN)
            it.server.murder()
            ended.poll()  # the loop stands still meanwhile
            os.close(descriptor)
            async with sleeper.lease() as after:
                assert after != before

    asyncio.run(story())


def test_who_was_midway_hears_of_it_and_sees_the_connection_end() -> None:
    async def story() -> None:
        async with sleeping() as it:
            body = {"text_input": "long", "max_tokens": 100_000, "seconds": 0.01}
            lines: list[str] = []

            async def read() -> None:
                async with it.client.stream("POST", "/v2/models/m/generate_stream", json=body) as response:
                    async for line in response.aiter_lines():
                        if line:
                            lines.append(line)
                        if len(lines) == 2:
                            it.server.murder()

            with pytest.raises(httpx.RemoteProtocolError):
                await read()
            assert texts("\n".join(lines[:2])) == expected("long", 2)
            assert "went away" in event(lines[-1])["error"]

    asyncio.run(story())


def test_one_that_kills_every_server_is_not_asked_for_ever() -> None:
    async def story() -> None:
        async with sleeping() as it:
            asking = asyncio.create_task(it.client.get("/v2/silence"))
            while not asking.done():
                if it.phase is Phase.AWAKE and ["GET", "/v2/silence"] in await it.log():
                    it.server.murder()
                await asyncio.sleep(0.01)
            answer = await asking
            assert answer.status_code == 503
            assert it.server.starts <= 4

    asyncio.run(story())


def test_a_server_that_does_not_start_ends_the_start_with_its_reason() -> None:
    async def story() -> None:
        async with sleeping() as it:
            await it.put_to_sleep()
            it.server.failures = 1
            assert await it.stream("hello") == expected("hello"), "one failure is nothing to a request"
            assert "told to fail" in it.said[-1]

    async def broken() -> None:
        server = StandIn()
        server.failures = 10
        with pytest.raises(ResourceError, match="told to fail"):
            async with opened({"x": (server, 1)}, ServerConfig(ports=ANY_PORTS), Rest(idle_timeout=1), print):
                pass
        assert server.failures == 9, "it was tried once"

    asyncio.run(story())
    asyncio.run(broken())


def test_closing_lets_open_streams_finish_and_refuses_new_requests() -> None:
    async def story() -> None:
        async with sleeping() as it:
            body = {"text_input": "last", "max_tokens": 20, "waits": True}
            async with it.client.stream("POST", "/v2/models/m/generate_stream", json=body) as response:
                lines = response.aiter_lines()
                await anext(lines)
                closing = asyncio.create_task(it.front.close(PATIENCE_SECONDS))
                await asyncio.sleep(0)
                refused = await it.client.get("/v2/echo")
                assert refused.status_code == 503
                assert (await it.client.get("/v2/health/ready")).status_code == 400
                it.server.go_on()
                rest = [line async for line in lines if line]
            assert texts("\n".join(rest)) == expected("last", 20)[1:]
            assert await closing is True
            assert it.server.pid is None

    asyncio.run(story())


def test_closing_cuts_streams_that_do_not_finish() -> None:
    async def story() -> None:
        async with sleeping() as it:
            asking = asyncio.create_task(it.stream("endless", 100_000, 0.01))
            await it.until(lambda: it.front.keeper.figures["only"].lifecycle.num_leases == 1, "under way")
            assert await it.front.close(0.1) is False
            assert it.server.pid is None
            with pytest.raises((httpx.RemoteProtocolError, AssertionError)):
                await asking

    asyncio.run(story())


def test_several_take_turns_and_are_named_by_a_header() -> None:
    async def story() -> None:
        async with sleeping(names=("a", "b"), budget=1) as it:
            path = "/v2/models/m/generate_stream"
            body = {"text_input": "x", "max_tokens": 1}
            for name in ("a", "b", "a", "b"):
                response = await it.client.post(path, json=body, headers={"x-trierarch-engine": name})
                assert texts(response.text) == ["x.0"]
                others = {other: server.pid for other, server in it.servers.items() if other != name}
                assert list(others.values()) == [None], "there is room for one"
            unknown = await it.client.post(path, json=body, headers={"x-trierarch-engine": "c"})
            assert unknown.status_code == 404
            assert "a, b" in unknown.json()["error"]
            first = await it.client.post(path, json=body)
            assert texts(first.text) == ["x.0"]
            assert it.servers["a"].pid is not None

    asyncio.run(story())


def test_a_body_too_large_to_be_kept_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "MAX_REQUEST_BYTES", 1000)
    monkeypatch.setattr(kept_bytes, "MAX_KEPT_BYTES", 1500)

    async def story() -> None:
        async with sleeping() as it:
            refused = await it.client.post("/v2/echo", content=b"x" * 1001)
            assert refused.status_code == 413
            body = b"x" * 1000
            assert (await it.client.post("/v2/echo", content=body)).json()["body"] == body.decode()
            asking = asyncio.create_task(it.client.post("/v2/silence", content=body))
            await it.until(lambda: it.front.house.kept.num_bytes == 1000, "kept")
            full = await it.client.post("/v2/echo", content=body)
            assert full.status_code == 503
            assert int(full.headers["retry-after"]) >= 1
            asking.cancel()
            await it.until(lambda: it.front.house.kept.num_bytes == 0, "given back")
            assert (await it.client.post("/v2/echo", content=body)).status_code == 200

    asyncio.run(story())


def test_shared_memory_that_would_be_forgotten_is_refused() -> None:
    async def story() -> None:
        async with sleeping() as it:
            await it.put_to_sleep()
            refused = await it.client.post("/v2/systemsharedmemory/region/mine/register", json={})
            assert refused.status_code == 400
            assert "--idle-timeout" in refused.json()["error"]
            assert it.server.starts == 1

    asyncio.run(story())
