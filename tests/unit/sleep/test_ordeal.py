"""A thousand wakes, sleeps and kills at random, of real processes: no request is lost."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import aclosing

import pytest

from support.sleeping import Sleeping, address, event, expected, sleeping, texts
from trierarch.benchmarks.ordeal_session import Fate, Lost, Ordeal, Outcome, endure
from trierarch.orchestrator.sleep.http_exchange import BrokenOff, Head, exchange

HEADERS = [(b"host", b"front"), (b"content-type", b"application/json")]


async def ask(it: Sleeping, number: int, num_events: int) -> Fate:
    """Stream an answer, and judge what came of it."""
    body = json.dumps({"text_input": str(number), "max_tokens": num_events, "seconds": 0.01}).encode()
    target, to = b"/v2/models/m/generate_stream", address(it.front.endpoints.http)
    head, heard = None, b""
    try:
        async with aclosing(exchange(to, "POST", target, HEADERS, body)) as parts:
            async for part in parts:
                if isinstance(part, Head):
                    head = part
                else:
                    heard += part
    except BrokenOff as error:
        if head is None:
            raise Lost(f"the front hung up: {error}") from error
        events = [line for line in heard.decode().splitlines() if line.startswith("data: ")]
        if "went away" not in event(events[-1]).get("error", ""):
            raise Lost("it was cut without a word") from None
        if texts("\n".join(events[:-1])) != expected(str(number), num_events)[: len(events) - 1]:
            raise Lost(f"it heard something wrong: {events}") from None
        return Fate.CUT
    if head is None or head.status != 200:
        return Fate.REFUSED
    if texts(heard.decode()) != expected(str(number), num_events):
        raise Lost(f"it heard {heard!r}")
    return Fate.ANSWERED


@pytest.mark.timeout(600)
def test_no_request_is_lost_in_a_thousand_wakes_sleeps_and_kills() -> None:
    async def story(seed: int) -> tuple[Outcome, int, int]:
        ordeal = Ordeal(num_cycles=250, seed=seed, spread=0.2, idle_timeout=0.01)
        async with sleeping(idle_timeout=ordeal.idle_timeout) as it:

            def kill(chance: random.Random) -> bool:
                is_there = it.server.pid is not None
                it.murder()
                return is_there

            outcome = await endure(ordeal, lambda number: ask(it, number, 1 + number % 5), kill)
            figures = it.front.keeper.figures["only"]
            assert figures.lifecycle.num_leases == figures.lifecycle.num_held == 0
            return outcome, it.server.stops, figures.num_retries

    async def stories() -> None:
        told = await asyncio.gather(*(story(20261127 + number) for number in range(4)))
        outcomes = [outcome for outcome, _, _ in told]
        assert not [loss for outcome in outcomes for loss in outcome.losses]
        fates = sum((outcome.fates for outcome in outcomes), Counter[Fate]())
        assert fates[Fate.REFUSED] == 0
        # That it was an ordeal:
        assert fates[Fate.ANSWERED] > 1500
        assert fates[Fate.CUT] > 0
        assert sum(outcome.num_kills for outcome in outcomes) > 200
        assert sum(stops for _, stops, _ in told) > 200
        assert sum(retries for _, _, retries in told) > 0

    asyncio.run(stories())
