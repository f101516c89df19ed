"""Benchmark `ordeal`: a thousand random wakes, sleeps and kills of a real Triton, and what became of every request."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import psutil

from trierarch.benchmarks import provenance
from trierarch.benchmarks.campaign import DISTRIBUTIONS
from trierarch.benchmarks.engine import TRITON, build_demo
from trierarch.benchmarks.machine import Machine
from trierarch.benchmarks.measurement import Measurement
from trierarch.benchmarks.ordeal_session import Fate, Lost, Ordeal, Outcome, endure
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.report import Better, Figure, Goal, Of, Report, Row, compare
from trierarch.benchmarks.sleeping_server import SleepingServer, sleeping_server

PROMPTS: Final = ("The capital of France is", "1 2 3 4 5 6 7", "Once upon a time")
NUM_TOKENS: Final = 24
NONE: Final = Goal(Of.VALUE, 0)


@dataclass(slots=True)
class Judge:
    """Asks, and knows what must be answered."""

    server: SleepingServer
    answers: dict[str, str]
    refusals: list[str] = field(default_factory=list)
    """What those were told who were refused."""

    @classmethod
    async def of(cls, server: SleepingServer) -> Judge:
        """Of a server to which nothing happens yet."""
        return cls(server, {text: (await server.ask(text, NUM_TOKENS)).text for text in PROMPTS})

    async def ask(self, number: int) -> Fate:
        """See `endure`."""
        text = PROMPTS[number % len(PROMPTS)]
        heard = await self.server.ask(text, NUM_TOKENS)
        if heard.status is None:
            raise Lost("the front hung up without a word")
        if heard.status != 200:
            self.refusals.append(f"request {number}: {heard.status} {heard.refusal}")
            return Fate.REFUSED
        if heard.is_whole and heard.text == self.answers[text]:
            return Fate.ANSWERED
        if heard.events and "error" in heard.events[-1] and self.answers[text].startswith(heard.text):
            return Fate.CUT
        raise Lost(f"it heard {heard}")

    def kill(self, chance: random.Random) -> bool:
        """Kill the server or one of its stubs."""
        victims = self.server.victims()
        if not victims:
            return False
        with suppress(psutil.NoSuchProcess):
            chance.choice(victims).kill()
        return True


def run(options: Options) -> Iterator[Report]:
    """Build the demo engine and put it through it.

    Raises:
        ResourceError: the demo checkpoint is not here and cannot be downloaded.
    """
    ordeal = Ordeal(num_cycles=5 if options.is_quick else 1000, seed=options.seed, spread=1.6, idle_timeout=0.3)
    options.say("building the demo engine")
    engine, _ = build_demo(dtype=options.dtype)
    outcome = asyncio.run(endured(engine, ordeal, options))
    yield Report(
        benchmark="ordeal",
        is_quick=options.is_quick,
        date=provenance.now(),
        commit=provenance.commit(),
        seed=options.seed,
        machine=Machine.here().to_dict(),
        versions=provenance.versions(DISTRIBUTIONS),
        lengths=asdict(ordeal) | {"num_tokens": NUM_TOKENS},
        rows=tuple(rows(outcome)),
        notes=tuple(outcome.losses[:20]),
    )


async def endured(engine: Path, ordeal: Ordeal, options: Options) -> Outcome:
    """Serve `engine` and go through with it."""
    with sleeping_server(engine, ordeal.idle_timeout, "--drain-timeout=5", "--log-level=warning") as server:
        judge = await Judge.of(server)
        outcome = await endure(ordeal, judge.ask, judge.kill, options.say)
        outcome.losses += judge.refusals
        return outcome


def rows(outcome: Outcome) -> Iterator[Row]:
    """How many requests had each fate; nobody may be lost, and nobody refused."""
    counts = {f"requests_{fate}": outcome.fates[fate] for fate in Fate} | {"kills": outcome.num_kills}
    goals = {f"requests_{Fate.LOST}": NONE, f"requests_{Fate.REFUSED}": NONE}
    for name, count in counts.items():
        figure = Figure(name=name, unit="", better=Better.LOWER, goal=goals.get(name))
        yield from compare(figure, TRITON, Measurement.of([count]))
