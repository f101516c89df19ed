"""Benchmark `wake`: from Triton asleep to the first streamed token, and what the front takes meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from trierarch.benchmarks import provenance
from trierarch.benchmarks.campaign import DISTRIBUTIONS
from trierarch.benchmarks.engine import TRITON, build_demo
from trierarch.benchmarks.machine import Limits, Machine
from trierarch.benchmarks.measurement import Measurement
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.report import Figure, Report, compare
from trierarch.benchmarks.sleeping_server import sleeping_server
from trierarch.benchmarks.wake_session import Plan, WakeSession

IDLE_SECONDS: Final = 0.5


def run(options: Options) -> Iterator[Report]:
    """Build the demo engine, let it sleep and wake it, again and again.

    Raises:
        ResourceError: the demo checkpoint is not here and cannot be downloaded.
    """
    plan = (
        Plan(num_wakes=2, num_held=3, num_tokens=2)
        if options.is_quick
        else Plan(num_wakes=15, num_held=16, num_tokens=8)
    )
    options.say("building the demo engine")
    engine, _ = build_demo(dtype=options.dtype)
    options.say("measuring what the machine gives")
    limits = Limits.measure()
    figures = asyncio.run(_figures(engine, plan, options))
    yield Report(
        benchmark="wake",
        is_quick=options.is_quick,
        date=provenance.now(),
        commit=provenance.commit(),
        seed=options.seed,
        machine=Machine.here().to_dict() | {"limits": asdict(limits)},
        versions=provenance.versions(DISTRIBUTIONS),
        lengths=asdict(plan) | {"idle_timeout": IDLE_SECONDS, "dtype": options.dtype},
        rows=tuple(row for figure, measured in figures for row in compare(figure, TRITON, measured)),
    )


async def _figures(engine: Path, plan: Plan, options: Options) -> list[tuple[Figure, Measurement]]:
    with sleeping_server(engine, IDLE_SECONDS, "--drain-timeout=5", "--log-level=warning") as server:
        return await WakeSession(server, plan, options.say).figures()
