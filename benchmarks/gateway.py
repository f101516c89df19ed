"""Benchmark `gateway`: what the OpenAI API costs beside Triton's own gRPC, of one server in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from trierarch.benchmarks import campaign
from trierarch.benchmarks.engine import build_demo
from trierarch.benchmarks.machine import Limits
from trierarch.benchmarks.measurement import Measurement, Sample
from trierarch.benchmarks.process_tree import ForeignShare
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.report import Better, Figure, Goal, Of, Report, Row, compare
from trierarch.benchmarks.served import LoadProcess, Served
from trierarch.benchmarks.workers.door_load import GRPC, OPENAI, Order, Tally
from trierarch.benchmarks.workload import Workload

DOORS: Final = (GRPC, OPENAI)
SHARE_GOAL: Final = Goal(Of.RATIO, 0.9)
"""Of gRPC's rate, at the most streams."""
TTFT_GOAL: Final = Goal(Of.VALUE, 5)
MEMORY_GOAL: Final = Goal(Of.VALUE, 120)
NUM_PAIRS: Final = 15
"""Single requests through each door, whose medians make one sample of the added time to first token."""


@dataclass(slots=True)
class GatewayRun:
    """Takes the figures of one server."""

    server: Served
    load: LoadProcess
    workload: Workload
    options: Options

    def rates(self, count: int) -> list[Row]:
        """Tokens a second of `count` streams through either door, taken in turns."""
        name = f"aggregate_c{count}"
        samples: dict[str, list[Sample]] = {door: [] for door in DOORS}
        for repeat in range(self.workload.num_repeats):
            for door in DOORS if repeat % 2 == 0 else DOORS[::-1]:
                self.options.say(f"{name}: {door}, repeat {repeat + 1} of {self.workload.num_repeats}")
                samples[door].append(self._quietest(door, f"{name}/{repeat}/{door}", count))
        goal = SHARE_GOAL if count == max(self.workload.concurrencies) else None
        figure = Figure(name=name, unit="tok/s", better=Better.HIGHER, goal=goal)
        taken = {door: Measurement(tuple(found)) for door, found in samples.items()}
        return compare(figure, OPENAI, taken[OPENAI], {GRPC: taken[GRPC]})

    def _quietest(self, door: str, key: str, count: int) -> Sample:
        attempts: list[Sample] = []
        for attempt in range(self.workload.num_attempts):
            window = ForeignShare(lambda: [self.server.pid, self.load.pid])
            lengths = [self.workload.short_prompt] * count
            tally = self.ask(door, f"{key}/{attempt}", lengths, self.workload.num_output_tokens)
            attempts.append(Sample(tally.num_tokens / tally.seconds, window.share()))
            if not attempts[-1].is_disturbed:
                break
        return min(attempts, key=lambda sample: sample.foreign_share)

    def added_first_token(self) -> list[Row]:
        """Milliseconds by which the first text comes later than over gRPC, one request at a time, doors in turns."""
        figure = Figure(name="ttft_added", unit="ms", better=Better.LOWER, goal=TTFT_GOAL)
        samples = []
        for repeat in range(self.workload.num_repeats):
            self.options.say(f"{figure.name}: repeat {repeat + 1} of {self.workload.num_repeats}")
            window = ForeignShare(lambda: [self.server.pid, self.load.pid])
            firsts: dict[str, list[float]] = {door: [] for door in DOORS}
            for pair in range(NUM_PAIRS):
                for door in DOORS:
                    tally = self.ask(door, f"ttft/{repeat}/{pair}/{door}", [self.workload.short_prompt], 2)
                    firsts[door] += tally.first
            added = statistics.median(firsts[OPENAI]) - statistics.median(firsts[GRPC])
            samples.append(Sample(1000 * added, window.share()))
        return compare(figure, OPENAI, Measurement(tuple(samples)))

    def memory(self, name: str) -> list[Row]:
        """Megabytes of the process that holds the gateway and looks after Triton."""
        figure = Figure(name=name, unit="MB", better=Better.LOWER, goal=MEMORY_GOAL)
        return compare(figure, OPENAI, Measurement.of([self.server.gateway_bytes() / 2**20]))

    def ask(self, door: str, key: str, lengths: list[int], num_tokens: int) -> Tally:
        """Prompts of `key` through a door, all at once."""
        order = Order(
            door=door,
            address=self.server.addresses[door],
            prompts=self.workload.prompts(key, lengths),
            num_tokens=num_tokens,
        )
        tally: dict[str, Any] = self.load.fill(asdict(order))
        return Tally(**tally)


def run(options: Options) -> Iterator[Report]:
    """Build the demo engine, serve it, ask it through both doors in turns.

    Raises:
        ResourceError: the demo checkpoint is not here and cannot be downloaded, or the server or its load ended.
    """
    whole = Workload(seed=options.seed, concurrencies=(1, 8, 32))
    workload = (Workload.quick(options.seed) if options.is_quick else whole).with_streams(options.streams)
    options.say("building the demo engine")
    engine, _ = build_demo(dtype=options.dtype)
    lengths = {name: value for name, value in asdict(workload).items() if name != "seed"}
    report = campaign.blank("gateway", options, Limits.measure(), lengths | {"dtype": options.dtype})
    with Served(engine) as server, LoadProcess("door_load") as load:
        session = GatewayRun(server, load, workload, options)
        rows = session.memory("idle_memory")
        for door in DOORS:  # every shape is seen once before anything is timed
            session.ask(door, f"warm-up/{door}", [workload.short_prompt] * max(workload.concurrencies), 8)
        yield report
        for count in workload.concurrencies:
            rows += session.rates(count)
            yield replace(report, rows=tuple(rows))
        rows += session.added_first_token()
        rows += session.memory("memory_after_load")
        yield replace(report, rows=tuple(rows), is_complete=True)
