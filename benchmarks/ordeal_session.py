"""Ordeal: requests, sleeps and kills at random, and what became of every request.

A request that had heard nothing when its server was killed must be answered by the next one. One that had heard something
must be told that the rest will not come. Nobody may wait for ever, hear nothing at all, or hear something wrong.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

PATIENCE_SECONDS: Final = 120.0
"""After which a request counts as lost."""


class Fate(StrEnum):
    """Of a request."""

    ANSWERED = "answered"
    """Wholly, and rightly."""
    CUT = "cut"
    """It was told that the rest of its answer will not come."""
    REFUSED = "refused"
    """It was told that there is no server for it."""
    LOST = "lost"
    """Anything else."""


class Lost(Exception):
    """What a request came to that must not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordeal:
    """How hard it is."""

    num_cycles: int
    seed: int
    most_requests: int = 4
    """Of a cycle."""
    kill_share: float = 0.5
    """Of cycles in which the server, or a part of it, is killed."""
    spread: float
    """Seconds over which the requests of a cycle, and its kill, are spread: about as long as a wake and an answer take."""
    idle_timeout: float
    """Of the server: between two cycles it is left alone for up to twice that long."""


@dataclass(slots=True)
class Outcome:
    """What became of all."""

    fates: Counter[Fate] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)
    """What is known of those that were not answered and should have been."""
    num_kills: int = 0

    def __str__(self) -> str:
        """For people."""
        fates = ", ".join(f"{self.fates[fate]} {fate}" for fate in Fate)
        return f"{self.num_kills} kills: {fates}"


async def endure(
    ordeal: Ordeal,
    ask: Callable[[int], Awaitable[Fate]],
    kill: Callable[[random.Random], bool],
    say: Callable[[str], None] = lambda message: None,
) -> Outcome:
    """Go through with it.

    ask: sends a request of that number and tells its fate; raises Lost. kill: kills something that runs; whether there was
    anything to kill.
    """
    chance, outcome = random.Random(ordeal.seed), Outcome()

    async def request(number: int, delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                outcome.fates[await ask(number)] += 1
        except (Lost, TimeoutError) as error:
            outcome.fates[Fate.LOST] += 1
            outcome.losses.append(f"request {number}: {error or 'it waited for ever'}")

    async def murder(delay: float) -> None:
        await asyncio.sleep(delay)
        outcome.num_kills += kill(chance)

    number = 0
    for cycle in range(ordeal.num_cycles):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(chance.randint(1, ordeal.most_requests)):
                tasks.create_task(request(number, chance.uniform(0, ordeal.spread / 2)))
                number += 1
            if chance.random() < ordeal.kill_share:
                tasks.create_task(murder(chance.uniform(0, ordeal.spread)))
        await asyncio.sleep(chance.uniform(0, 2 * ordeal.idle_timeout))
        if (cycle + 1) % 50 == 0:
            say(f"{cycle + 1} cycles, {outcome}")
    return outcome
