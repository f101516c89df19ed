"""A crowd before a gateway, from a process of its own: so many at a time, or so many a second whatever becomes of them.

One line of JSON in (an `Order`), one line out (a `Tally`).
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Final

import uvloop

from trierarch.benchmarks.workers.openai_door import Outcome, ask_openai
from trierarch.benchmarks.workload import FIRST_TOKEN, LAST_TOKEN

PATIENCE_SECONDS: Final = 60.0
"""After the last request was sent; who has no answer then hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Who comes. Prompts are random, and none is sent twice."""

    address: str
    """host:port."""
    seed: str
    seconds: float
    """For so long requests are sent."""
    num_prompt_tokens: int
    num_tokens: int
    """Of each answer."""
    concurrency: int = 0
    """So many clients, each with its next request once it has its answer; 0 is a crowd by rate."""
    rate: float = 0.0
    """Requests a second, at random times (a Poisson process)."""


@dataclass(slots=True)
class Tally:
    """What became of them. Times are seconds."""

    num_sent: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    """Status -> requests; 0 is a stream that broke."""
    num_hung: int = 0
    num_tokens_in_time: int = 0
    """Of answers that were whole while requests were still being sent."""
    without_retry_after: int = 0
    """Refusals that do not say when to come again."""
    refusal_seconds: list[float] = field(default_factory=list)
    first_seconds: list[float] = field(default_factory=list)


class Crowd:
    """Sends the requests of one order."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._chance = random.Random(order.seed)
        self._outcomes: list[tuple[float, Outcome]] = []  # when, what
        self._num_sent = 0
        self._ends_at = time.monotonic() + order.seconds

    async def run(self) -> Tally:
        """Send them all, and wait for what is open."""
        order = self._order
        if order.concurrency:
            tasks: list[asyncio.Future[None]] = [
                asyncio.ensure_future(self._client()) for _ in range(order.concurrency)
            ]
        else:
            tasks = await self._arrivals()
        _, hung = await asyncio.wait(tasks, timeout=max(0.0, self._ends_at - time.monotonic()) + PATIENCE_SECONDS)
        for task in hung:
            task.cancel()
        return self._tally(len(hung))

    async def _client(self) -> None:
        while time.monotonic() < self._ends_at:
            await self._ask()

    async def _arrivals(self) -> list[asyncio.Future[None]]:
        tasks: list[asyncio.Future[None]] = []
        due = time.monotonic()
        while (due := due + self._chance.expovariate(self._order.rate)) < self._ends_at:
            # What is late is sent at once: a slow server slows nobody down.
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.ensure_future(self._ask()))
        return tasks

    async def _ask(self) -> None:
        order = self._order
        prompt = self._chance.choices(range(FIRST_TOKEN, LAST_TOKEN), k=order.num_prompt_tokens)
        self._num_sent += 1
        started = time.monotonic()
        try:
            outcome = await ask_openai(order.address, prompt, order.num_tokens)
        except (OSError, asyncio.IncompleteReadError):
            outcome = Outcome(0, time.monotonic() - started)
        self._outcomes.append((time.monotonic(), outcome))

    def _tally(self, num_hung: int) -> Tally:
        outcomes = [outcome for _, outcome in self._outcomes]
        refused = [outcome for outcome in outcomes if outcome.status == 503]
        return Tally(
            num_sent=self._num_sent,
            statuses={str(status): count for status, count in Counter(one.status for one in outcomes).items()},
            num_hung=num_hung,
            num_tokens_in_time=sum(one.num_tokens for at, one in self._outcomes if at <= self._ends_at),
            without_retry_after=sum(outcome.retry_after is None for outcome in refused),
            refusal_seconds=[outcome.seconds for outcome in refused],
            first_seconds=[outcome.first for outcome in outcomes if outcome.num_tokens],
        )


async def serve() -> None:
    """Fill orders until there are no more."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(asdict(await Crowd(Order(**json.loads(line))).run())), flush=True)


if __name__ == "__main__":
    uvloop.run(serve())
