"""Benchmark `cpu`: the demo model on this machine's processors, ours and the rivals in one run on one checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, Final

from trierarch.benchmarks import provenance
from trierarch.benchmarks.cpu_session import CpuSession, Taken
from trierarch.benchmarks.engine import EXECUTOR, OURS, TRITON, Footprint, build_demo, launches
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.machine import Limits, Machine
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.report import Goal, Of, Report, Row, compare
from trierarch.benchmarks.rivals.catalog import chosen
from trierarch.benchmarks.subjects.worker import WorkerSubject
from trierarch.benchmarks.workload import Workload

DISTRIBUTIONS: Final = ("trierarch", "torch", "tritonclient", "nvidia-pytriton")
GOALS_OF_ONE: Final = {
    ("cold_start", EXECUTOR): Goal(Of.VALUE, 1.8),
    ("cold_start", TRITON): Goal(Of.VALUE, 2.5),
}
"""Goals that are not the same for each of ours: (figure, subject) -> goal."""


def run(options: Options) -> Report:
    """Build the engine, start everyone, take every figure in turns.

    Raises:
        ConfigError: a rival is unknown or not installed.
        ResourceError: the demo checkpoint is not here and cannot be downloaded.
    """
    workload = Workload.quick(options.seed) if options.is_quick else Workload(seed=options.seed)
    rivals = chosen(options.rivals)
    options.say("building the engine")
    engine, manifest = build_demo()
    options.say("measuring what the machine gives")
    limits = Limits.measure()
    started = [*launches(engine), *(rival.launch() for rival in rivals)]
    with Lineup(map(WorkerSubject, started), workload.num_repeats, workload.num_attempts, options.say) as lineup:
        session = CpuSession(lineup, workload, Footprint.of(manifest), Limits.read_bandwidth)
        taken = list(session.figures())
        notes = [*lineup.notes, *session.doubts]
    if not rivals:
        notes.append("no rival was measured; install one with: python -m trierarch.benchmarks install NAME")
    settings: dict[str, Any] = {rival.name: {"what": rival.summary} for rival in rivals}
    for name, ready in session.ready.items():
        settings[name] = settings.get(name, {}) | ready.settings
    theirs = {name: ready.version for name, ready in session.ready.items() if name not in OURS}
    return Report(
        benchmark="cpu",
        is_quick=options.is_quick,
        date=provenance.now(),
        commit=provenance.commit(),
        seed=options.seed,
        machine=Machine.here().to_dict() | {"limits": asdict(limits)},
        versions=provenance.versions(DISTRIBUTIONS) | theirs,
        lengths={name: value for name, value in asdict(workload).items() if name != "seed"},
        rows=tuple(row for figure in taken for row in rows(figure)),
        settings=settings,
        notes=tuple(notes),
    )


def rows(taken: Taken) -> Iterator[Row]:
    """Each of ours beside all rivals."""
    figure, measured = taken.figure, taken.measured
    rivals = {name: measurement for name, measurement in measured.items() if name not in OURS}
    for subject in taken.ours:
        goal = GOALS_OF_ONE.get((figure.name, subject), figure.goal)
        yield from compare(replace(figure, goal=goal), subject, measured.get(subject), rivals)
