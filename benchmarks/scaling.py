"""Benchmark `scaling`: tokens a second against the number of streams and the length of context, beside the roofline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from trierarch.benchmarks import campaign
from trierarch.benchmarks.ceiling import Ceiling
from trierarch.benchmarks.engine import EXECUTOR, build_demo, launches
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.machine import Limits
from trierarch.benchmarks.paths import OUT
from trierarch.benchmarks.plot import draw
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.report import Report
from trierarch.benchmarks.rivals.catalog import UNQUANTIZED, chosen
from trierarch.benchmarks.scaling_session import ScalingSession
from trierarch.benchmarks.subjects.worker import Launch, WorkerSubject
from trierarch.benchmarks.workers.protocol import limits_environment
from trierarch.benchmarks.workload import Workload


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is swept over."""

    workload: Workload
    """Its concurrencies are one axis."""
    contexts: tuple[int, ...]
    """The other: prompt lengths at batch 1."""

    @classmethod
    def whole(cls, seed: int) -> Self:
        """As the issue asks."""
        workload = Workload(seed=seed, long_prompt=128, concurrencies=(1, 2, 4, 8, 16, 32, 64))
        return cls(workload, (128, 256, 512, 1024, 2048, 4096))

    @classmethod
    def quick(cls, seed: int) -> Self:
        """Just enough to see every path run."""
        return cls(replace(Workload.quick(seed), concurrencies=(1, 2)), (32, 64))

    @property
    def max_batch_size(self) -> int:
        """Most streams."""
        return max(self.workload.concurrencies)

    @property
    def max_seq_len(self) -> int:
        """Longest prompt and its output, at least what warming up sends."""
        workload = self.workload
        warm_up = workload.long_prompt + workload.num_own_tokens
        return max(*self.contexts, warm_up) + max(workload.num_output_tokens, 16)


def run(options: Options) -> Iterator[Report]:
    """Build an engine for the widest and the longest point, take every point, draw them. Rivals take part if named.

    Raises:
        ConfigError: a rival is unknown or not installed.
        ResourceError: the demo checkpoint is not here and cannot be downloaded.
    """
    sweep = Sweep.quick(options.seed) if options.is_quick else Sweep.whole(options.seed)
    sweep = replace(sweep, workload=sweep.workload.with_streams(options.streams))
    rivals = chosen(options.rivals or (), UNQUANTIZED)
    options.say(f"building an engine for {sweep.max_batch_size} sequences of {sweep.max_seq_len} tokens")
    engine, manifest = build_demo(
        max_batch_size=sweep.max_batch_size, max_seq_len=sweep.max_seq_len, dtype=options.dtype
    )
    options.say("measuring what the machine gives")
    limits = Limits.measure()
    workload = sweep.workload
    lengths = {name: value for name, value in asdict(workload).items() if name != "seed"}
    report = campaign.blank("scaling", options, limits, lengths | {"contexts": sweep.contexts})
    started = [launch for launch in launches(engine) if launch.name == EXECUTOR]
    started += [_widened(rival.launch(), sweep) for rival in rivals]
    contests = {EXECUTOR: tuple(rival.name for rival in rivals)}
    with Lineup(map(WorkerSubject, started), workload.num_repeats, workload.num_attempts, options.say) as lineup:
        ceiling, gflop_per_s = Ceiling.of(manifest), limits.gflop_per_s
        session = ScalingSession(
            lineup, workload, contests, sweep.contexts, ceiling, gflop_per_s, Limits.read_bandwidth
        )
        try:
            for grown in campaign.reports(report, session, rivals):
                report = grown
                yield report
        finally:
            _draw(session, report.path(OUT).with_suffix(".svg"), options)


def _widened(launch: Launch, sweep: Sweep) -> Launch:
    limits = limits_environment(sweep.max_batch_size, sweep.max_seq_len)
    return replace(launch, environment={**launch.environment, **limits})


def _draw(session: ScalingSession, path: Path, options: Options) -> None:
    """Of a run that was cut, what there is."""
    try:
        draw(path, *session.points())
    except ImportError:
        options.say("no plot: install matplotlib with: pip install --group bench")
    else:
        options.say(f"drawn to {path}")
