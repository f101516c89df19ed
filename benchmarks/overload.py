"""Benchmark `overload`: a crowd four times as large as the server can serve, for two minutes: nobody hangs, and it costs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final, Self

import numpy as np

from trierarch.benchmarks import campaign
from trierarch.benchmarks.engine import build_demo
from trierarch.benchmarks.machine import Limits
from trierarch.benchmarks.measurement import Measurement
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.report import Better, Figure, Goal, Of, Report, Row, compare
from trierarch.benchmarks.served import LoadProcess, Served
from trierarch.benchmarks.workers.crowd_load import Order, Tally
from trierarch.builder.errors import ResourceError

SUBJECT: Final = "openai"
GOODPUT_GOAL: Final = Goal(Of.VALUE, 95)
REFUSAL_GOAL: Final = Goal(Of.VALUE, 1000)
"""Milliseconds, of all but one in a hundred refusals: at once, for a client on the machine that computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run's lengths."""

    seconds: float = 120.0
    """Of the crowd; capacity is measured for half as long before and behind it."""
    times: float = 4.0
    """How many times the capacity comes."""
    concurrency: int = 32
    """Clients that measure capacity: as many sequences as the engine runs at once."""
    num_prompt_tokens: int = 32
    num_tokens: int = 64

    @classmethod
    def quick(cls) -> Self:
        """Just enough to see every path run."""
        return cls(seconds=10.0, concurrency=4, num_tokens=4)


@dataclass(slots=True)
class OverloadRun:
    """Loads one server."""

    server: Served
    load: LoadProcess
    plan: Plan
    options: Options

    def capacity(self, key: str) -> float:
        """Tokens a second of answers that were whole in time, with as many clients as there is room for."""
        seconds = self.plan.seconds / 2
        tally = self._fill(f"capacity/{key}", seconds, concurrency=self.plan.concurrency)
        return tally.num_tokens_in_time / seconds

    def crowd(self, rate: float) -> Tally:
        """Requests at `rate` a second, whatever becomes of them."""
        return self._fill("crowd", self.plan.seconds, rate=rate)

    def _fill(self, key: str, seconds: float, concurrency: int = 0, rate: float = 0.0) -> Tally:
        self.options.say(
            f"{key}: {seconds:g} s, {f'{concurrency} clients' if concurrency else f'{rate:.1f} requests/s'}"
        )
        order = Order(
            address=self.server.addresses["openai"],
            seed=f"{self.options.seed}/{key}",
            seconds=seconds,
            num_prompt_tokens=self.plan.num_prompt_tokens,
            num_tokens=self.plan.num_tokens,
            concurrency=concurrency,
            rate=rate,
        )
        return Tally(**self.load.fill(asdict(order)))


def run(options: Options) -> Iterator[Report]:
    """Build the demo engine, serve it, measure its capacity, bring the crowd, and measure its capacity again.

    Raises:
        ResourceError: the demo checkpoint is not here and cannot be downloaded, or the server or its load ended.
    """
    plan = Plan.quick() if options.is_quick else Plan()
    if options.streams:
        plan = replace(plan, concurrency=max(options.streams))
    options.say("building the demo engine")
    engine, _ = build_demo(dtype=options.dtype, max_batch_size=plan.concurrency)
    lengths = asdict(plan) | {"dtype": options.dtype}
    report = campaign.blank("overload", options, Limits.measure(), lengths)
    with Served(engine) as server, LoadProcess("crowd_load") as load:
        session = OverloadRun(server, load, plan, options)
        session.capacity("warm-up")
        before = session.capacity("before")
        if not before:
            raise ResourceError("no answer was whole in time: this machine is too busy to be measured")
        yield report
        tally = session.crowd(plan.times * before / plan.num_tokens)
        # The host may drift within minutes: what it gave around the crowd is what the crowd is held against.
        capacity = (before + session.capacity("after")) / 2
        yield replace(report, rows=tuple(_rows(tally, capacity, plan)), is_complete=True)


def _rows(tally: Tally, capacity: float, plan: Plan) -> Iterator[Row]:
    goodput = tally.num_tokens_in_time / plan.seconds
    yield from _row("capacity", "tok/s", Better.HIGHER, capacity)
    yield from _row("goodput_overload", "tok/s", Better.HIGHER, goodput)
    yield from _row("share_of_capacity", "%", Better.HIGHER, 100 * goodput / capacity, GOODPUT_GOAL)
    yield from _row("hung", "requests", Better.LOWER, tally.num_hung, Goal(Of.VALUE, 0))
    failed = sum(count for status, count in tally.statuses.items() if status not in ("200", "503"))
    yield from _row("neither_answered_nor_refused", "requests", Better.LOWER, failed, Goal(Of.VALUE, 0))
    yield from _row("refused_without_a_time", "requests", Better.LOWER, tally.without_retry_after, Goal(Of.VALUE, 0))
    yield from _row("refused", "%", Better.LOWER, 100 * tally.statuses.get("503", 0) / max(1, tally.num_sent))
    if tally.refusal_seconds:
        latest = 1000 * float(np.percentile(tally.refusal_seconds, 99))
        yield from _row("refusal_p99", "ms", Better.LOWER, latest, REFUSAL_GOAL)
    if tally.first_seconds:
        yield from _row("ttft_p50", "ms", Better.LOWER, 1000 * float(np.median(tally.first_seconds)))


def _row(name: str, unit: str, better: Better, value: float, goal: Goal | None = None) -> list[Row]:
    return compare(Figure(name=name, unit=unit, better=better, goal=goal), SUBJECT, Measurement.of([float(value)]))
