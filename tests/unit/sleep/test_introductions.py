"""Servers that sleep are known to a gateway from when they were first awake."""

from __future__ import annotations

import asyncio

from support.fake_triton import fake_triton
from support.sleeping import sleeping
from trierarch.orchestrator.gateway.upstream import Endpoints
from trierarch.orchestrator.sleep.introductions import Introductions


def test_who_was_greeted_is_known_and_who_says_nothing_is_not() -> None:
    async def story(address: str) -> None:
        introductions = Introductions()
        await introductions.greet("a", Endpoints(grpc=address, http="", metrics=""))
        await introductions.greet("b", Endpoints(grpc="127.0.0.1:1", http="", metrics=""))
        async with sleeping(names=("a", "b")) as it:
            a, b = introductions.sources(it.front)
            assert (a.label, a.names, a.description and a.description.name) == ("a", ("a",), "demo")
            assert (b.label, b.names, b.description) == ("b", ("b",), None)
            async with b.upstream.lease() as endpoints:
                assert endpoints.engine == "b"
            assert b.upstream.metrics == endpoints.metrics

    with fake_triton() as (_, address):
        asyncio.run(story(address))


def test_one_alone_is_called_as_it_calls_itself() -> None:
    async def story() -> None:
        async with sleeping() as it:
            (source,) = Introductions().sources(it.front)
            assert source.names == ()
            async with source.upstream.lease() as endpoints:
                assert not endpoints.engine

    asyncio.run(story())


def test_servers_are_greeted_while_they_are_awake_for_the_first_time() -> None:
    async def story() -> None:
        greeted = []

        async def greet(name: str, endpoints: Endpoints) -> None:
            greeted.append((name, endpoints.http))

        async with sleeping(names=("a", "b"), budget=1, greet=greet) as it:
            assert [name for name, _ in greeted] == ["a", "b"]
            assert [server.starts for server in it.servers.values()] == [1, 1]

    asyncio.run(story())
