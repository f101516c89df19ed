"""A gateway with an event loop of its own, before a server that sleeps."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from support.sleeping import Sleeping, sleeping
from trierarch.orchestrator.gateway.upstream import Endpoints, Unavailable, Upstream
from trierarch.orchestrator.sleep.front_door import FrontDoor
from trierarch.orchestrator.sleep.http_exchange import exchange


async def _ask(door: Upstream) -> bytes:
    async with (
        door.lease() as endpoints,
        aclosing(exchange(endpoints.http, "GET", b"/v2/hello", [(b"host", b"x")], b"")) as parts,
    ):
        return b"".join([part async for part in parts if isinstance(part, bytes)])


def test_a_gateway_in_another_thread_wakes_the_server_by_asking() -> None:
    async def story() -> None:
        async with sleeping() as it:
            door = _door(it)
            await it.put_to_sleep()
            assert door.is_ready
            assert door.awake is None

            assert await asyncio.to_thread(asyncio.run, _ask(door)) == b"/v2/hello"

            assert it.server.starts == 2
            await it.front.close(1.0)
            assert not door.is_ready
            with pytest.raises(Unavailable):
                await asyncio.to_thread(asyncio.run, _ask(door))

    asyncio.run(story())


def test_to_look_at_what_is_awake_is_no_use_of_it() -> None:
    async def story() -> None:
        async with sleeping() as it:
            lifecycle = it.front.house.find(None).sleeper.lifecycle
            used, looked_at = lifecycle.last_used, _door(it).awake
            assert looked_at is not None
            async with aclosing(exchange(looked_at.http, "GET", b"/v2/hello", [(b"host", b"x")], b"")) as parts:
                assert [part async for part in parts][1:] == [b"/v2/hello"]
            assert lifecycle.last_used == used
            await _ask(_door(it))
            assert lifecycle.last_used > used

    asyncio.run(story())


def _door(it: Sleeping) -> FrontDoor:
    return FrontDoor(it.front.house.find(None), Endpoints.of(it.front.endpoints))
