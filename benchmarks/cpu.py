"""Benchmark `cpu`: the demo model on this machine's processors, ours and the rivals in one run on one checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from trierarch.benchmarks import campaign
from trierarch.benchmarks.cpu_session import CpuSession
from trierarch.benchmarks.engine import OURS, Footprint, build_demo, launches, step_probe
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.machine import Limits
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.report import Report
from trierarch.benchmarks.rivals.catalog import UNQUANTIZED, chosen
from trierarch.benchmarks.subjects.worker import WorkerSubject
from trierarch.benchmarks.workload import Workload


def run(options: Options) -> Iterator[Report]:
    """Build the engine, start everyone, take every figure in turns.

    Raises:
        ConfigError: a rival is unknown or not installed.
        ResourceError: the demo checkpoint is not here and cannot be downloaded.
    """
    whole = Workload.quick(options.seed) if options.is_quick else Workload(seed=options.seed)
    workload = whole.with_streams(options.streams)
    rivals = chosen(options.rivals, UNQUANTIZED)
    options.say("building the engine")
    engine, manifest = build_demo(dtype=options.dtype)
    options.say("measuring what the machine gives")
    lengths = {name: value for name, value in asdict(workload).items() if name != "seed"}
    report = campaign.blank("cpu", options, Limits.measure(), lengths)
    started = [*launches(engine), *(rival.launch() for rival in rivals)]
    contests = {ours: tuple(rival.name for rival in rivals) for ours in OURS}
    with Lineup(map(WorkerSubject, started), workload.num_repeats, workload.num_attempts, options.say) as lineup:
        session = CpuSession(
            lineup,
            workload,
            contests,
            Footprint.of(manifest),
            Limits.read_bandwidth,
            WorkerSubject(step_probe(engine)),
        )
        yield from campaign.reports(report, session, rivals)
