"""WakeSession: what a request pays that finds Triton asleep, and what is left of memory meanwhile."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from trierarch.benchmarks.measurement import Measurement, Sample
from trierarch.benchmarks.process_tree import ForeignShare
from trierarch.benchmarks.report import Better, Figure, Goal, Of
from trierarch.benchmarks.sleeping_server import Heard, SleepingServer

WAKE_GOAL: Final = Goal(Of.VALUE, 3)
HELD_GOAL: Final = Goal(Of.VALUE, 1.3)
IDLE_GOAL: Final = Goal(Of.VALUE, 120)
QUESTION: Final = "The capital of France is"
SYSTEM_PROMPT: Final = "You are assistant {number}. " + "Answer shortly, truly and in plain words. " * 60
"""Some 500 tokens."""
PERCENT_HELD: Final = 99


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked for."""

    num_wakes: int
    """With one request each, and as many with several."""
    num_held: int
    """Requests that wait for a wake together."""
    num_tokens: int
    """Of each answer."""


class WakeFailed(Exception):
    """A request was not answered."""


@dataclass(slots=True)
class WakeSession:
    """Takes the figures of one server, once."""

    server: SleepingServer
    plan: Plan
    say: Callable[[str], None]

    async def figures(self) -> list[tuple[Figure, Measurement]]:
        """All of them."""
        await self.server.asleep()
        idle = Measurement.of([self.server.resident_bytes() / 1e6])
        alone = [
            await self._wake(1, f"wake {number + 1} of {self.plan.num_wakes}") for number in range(self.plan.num_wakes)
        ]
        held = [
            await self._wake(
                self.plan.num_held, f"wake {number + 1} of {self.plan.num_wakes}, for {self.plan.num_held}"
            )
            for number in range(self.plan.num_wakes)
        ]
        prefixes = [figure async for figure in self._prefixes()]
        await self.server.asleep()
        idle_at_end = Measurement.of([self.server.resident_bytes() / 1e6])
        return [
            *self._taken(alone, held),
            *prefixes,
            (Figure(name="idle_rss", unit="MB", better=Better.LOWER, goal=IDLE_GOAL), idle),
            (Figure(name="idle_rss_at_end", unit="MB", better=Better.LOWER, goal=IDLE_GOAL), idle_at_end),
        ]

    def _taken(
        self, alone: Sequence[Sequence[Sample]], held: Sequence[Sequence[Sample]]
    ) -> Iterator[tuple[Figure, Measurement]]:
        wakes = Measurement(tuple(sample for wake in alone for sample in wake))
        waits = [sample for wake in held for sample in wake]
        median = statistics.median(sample.value for wake in held for sample in wake[:1])
        slow = percentile([sample.value for sample in waits], PERCENT_HELD)
        is_disturbed = max(sample.foreign_share for sample in waits)
        yield Figure(name="wake_first_token", unit="s", better=Better.LOWER, goal=WAKE_GOAL), wakes
        yield Figure(name="wake_first_token_worst", unit="s", better=Better.LOWER), Measurement.of([max(wakes.values)])
        yield (
            Figure(name=f"held_first_token_c{self.plan.num_held}", unit="s", better=Better.LOWER),
            Measurement(tuple(waits)),
        )
        ratio = Measurement((Sample(slow / median, is_disturbed),))
        yield Figure(name=f"held_p{PERCENT_HELD}_of_median_wake", unit="×", better=Better.LOWER, goal=HELD_GOAL), ratio

    async def _prefixes(self) -> AsyncIterator[tuple[Figure, Measurement]]:
        """First tokens behind a long system prompt: one that was asked for before the sleep, and others that were not."""
        hot = SYSTEM_PROMPT.format(number=0)
        await self.server.ask(hot, self.plan.num_tokens)
        for name, prompts in (
            ("hot", [hot] * self.plan.num_wakes),
            ("cold", [SYSTEM_PROMPT.format(number=number + 1) for number in range(self.plan.num_wakes)]),
        ):
            samples = []
            for prompt in prompts:
                samples += await self._wake(1, f"a {name} system prompt", prompt)
            yield (
                Figure(name=f"wake_first_token_{name}_prompt", unit="s", better=Better.LOWER),
                Measurement(tuple(samples)),
            )

    async def _wake(self, num_requests: int, what: str, prompt: str = QUESTION) -> list[Sample]:
        """Seconds to the first token of requests that find Triton asleep, all sent at once; then let it sleep again."""
        await self.server.asleep()
        self.say(what)
        foreign = ForeignShare(lambda: [self.server.process.pid])
        heard = await asyncio.gather(
            *(self.server.ask(f"{prompt} {number}", self.plan.num_tokens) for number in range(num_requests))
        )
        share = foreign.share()
        return sorted((Sample(_seconds(one), share) for one in heard), key=lambda sample: sample.value)


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that `percent` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _seconds(heard: Heard) -> float:
    if heard.status != 200 or not heard.is_whole or heard.first_after is None:
        raise WakeFailed(f"a request was not answered: {heard}")
    return heard.first_after
