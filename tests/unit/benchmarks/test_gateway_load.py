"""The load generators of the gateway's benchmarks, before a Triton that is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from support.fake_triton import Asked, Said, front, last
from trierarch.benchmarks.overload import Plan, _rows
from trierarch.benchmarks.workers.crowd_load import Crowd, Order
from trierarch.benchmarks.workers.openai_door import ask_openai


async def say(asked: Asked) -> AsyncIterator[Said]:
    yield Said({"text_output": "a"})
    await asyncio.sleep(0.05)
    yield last("b", tokens=asked.one("max_tokens"))


def test_an_answer_is_read_to_its_end() -> None:
    with front() as gateway:
        gateway.triton.script = say
        outcome = asyncio.run(ask_openai(f"127.0.0.1:{gateway.port}", [1, 2, 3], 7))
        assert (outcome.status, outcome.num_tokens) == (200, 7)
        assert 0 < outcome.first <= outcome.seconds
        assert gateway.triton.asked[0].inputs["input_ids"] == [1, 2, 3]
        assert gateway.triton.asked[0].one("end_id") == -1


def test_a_crowd_is_answered_or_refused_to_the_last() -> None:
    async def run(port: int, **who: float) -> None:
        order = Order(
            address=f"127.0.0.1:{port}",
            seed="s",
            seconds=0.5,
            num_prompt_tokens=4,
            num_tokens=2,
            **who,  # type: ignore[arg-type]
        )
        tally = await Crowd(order).run()
        assert tally.num_sent == sum(tally.statuses.values()) > 0
        assert set(tally.statuses) <= {"200", "503"}
        assert tally.num_hung == tally.without_retry_after == 0
        assert len(tally.refusal_seconds) == tally.statuses.get("503", 0)
        rows = {row.figure: row for row in _rows(tally, 10.0, Plan())}
        assert rows["hung"].met
        assert rows["neither_answered_nor_refused"].met

    with front(max_open=1) as gateway:
        gateway.triton.script = say
        asyncio.run(run(gateway.port, concurrency=2))
        asyncio.run(run(gateway.port, rate=100.0))


def test_a_stream_that_breaks_is_told() -> None:
    async def break_off(asked: Asked) -> AsyncIterator[Said]:
        yield Said({"text_output": "a"})
        yield Said(error="INTERNAL: a step failed")

    with front() as gateway:
        gateway.triton.script = break_off
        outcome = asyncio.run(ask_openai(f"127.0.0.1:{gateway.port}", [1], 2))
        assert (outcome.status, outcome.num_tokens) == (0, 0)
