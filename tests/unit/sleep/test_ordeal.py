"""A thousand wakes, sleeps and kills at random, of real processes: no request is lost."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import aclosing

import pytest

from support.sleeping import Sleeping, address, event, expected, sleeping, texts
from trierarch.benchmarks.ordeal_session import Fate, Lost, Ordeal, Outcome, endure
from trierarch.orchestrator.sleep import lifecycle
from trierarch.orchestrator.sleep.http_exchange import BrokenOff, Head, exchange

HEADERS = [(b"host", b"front"), (b"content-type", b"application/json")]


async def ask(it: Sleeping, number: int, num_events: int) -> Fate:
    """Stream an answer, and judge what came of it."""
    body = json.dumps({"text_input": str(number), "max_tokens": num_events, "seconds": 0.003}).encode()
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


async def seconds_of_a_wake_and_an_answer(it: Sleeping) -> float:
    """On this host, now: what happens is to happen amid them, wherever the tests run."""
    await it.put_to_sleep()
    started = time.monotonic()
    await ask(it, 0, 3)
    return min(time.monotonic() - started, 0.5)


@pytest.mark.timeout(600)
def test_no_request_is_lost_in_a_thousand_wakes_sleeps_and_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its deaths are ours: they are no reason to wait for seconds, nor to give it up, which a row of them would be.
    monkeypatch.setattr(lifecycle, "BACKOFF_SECONDS", tuple(seconds / 100 for seconds in lifecycle.BACKOFF_SECONDS))
    monkeypatch.setattr(lifecycle, "PATIENCE", 10_000)

    async def story(seed: int) -> tuple[Outcome, int, int]:
        async with sleeping(idle_timeout=0.01, start_seconds=0.003) as it:
            spread = 2 * await seconds_of_a_wake_and_an_answer(it)
            ordeal = Ordeal(num_cycles=100, seed=seed, spread=spread, idle_timeout=0.01)
            outcome = await endure(ordeal, lambda number: ask(it, number, 1 + number % 5), lambda _: it.server.murder())
            figures = it.front.keeper.figures["only"]
            assert figures.lifecycle.num_leases == figures.lifecycle.num_held == 0
            return outcome, it.server.stops, figures.num_retries

    async def stories() -> None:
        told = await asyncio.gather(*(story(20261127 + number) for number in range(10)))
        outcomes = [outcome for outcome, _, _ in told]
        assert not [loss for outcome in outcomes for loss in outcome.losses]
        fates = sum((outcome.fates for outcome in outcomes), Counter[Fate]())
        assert fates[Fate.REFUSED] == 0
        # That it was an ordeal:
        assert fates[Fate.ANSWERED] > 1000
        assert fates[Fate.CUT] > 0
        assert sum(outcome.num_kills for outcome in outcomes) > 100
        assert sum(stops for _, stops, _ in told) > 100
        assert sum(retries for _, _, retries in told) > 0

    asyncio.run(stories())
