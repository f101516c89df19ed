"""Benchmark `quantized`: the demo model with weights of 8 and of 4 bits, each beside rivals at the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from trierarch.benchmarks import campaign
from trierarch.benchmarks.engine import EXECUTOR, TRITON, Footprint, build_demo, launches
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.machine import Limits
from trierarch.benchmarks.quantized_session import QuantizedSession
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.report import Report
from trierarch.benchmarks.rivals.catalog import QUANTIZED, chosen
from trierarch.benchmarks.subjects.worker import Launch, WorkerSubject
from trierarch.benchmarks.workload import Workload
from trierarch.builder.manifest import Accuracy, WeightType

BITS: Final = {WeightType.INT8: 8, WeightType.INT4: 4}


def run(options: Options) -> Iterator[Report]:
    """Build an engine of each kind, start everyone, take every figure in turns.

    Raises:
        ConfigError: a rival is unknown or not installed.
        ResourceError: the demo checkpoint is not here and cannot be downloaded.
    """
    whole = Workload.quick(options.seed) if options.is_quick else Workload(seed=options.seed)
    workload = whole.with_streams(options.streams)
    rivals = chosen(options.rivals, QUANTIZED)
    started: list[Launch] = []
    contests: dict[str, tuple[str, ...]] = {}
    footprints: dict[str, Footprint] = {}
    accuracies: dict[str, Accuracy] = {}
    for weights, bits in BITS.items():
        options.say(f"building the {weights} engine")
        engine, manifest = build_demo(weights)
        ours = launches(engine, f"-{weights}")
        started += ours
        contests |= {launch.name: tuple(rival.name for rival in rivals if rival.bits == bits) for launch in ours}
        footprints |= {launch.name: Footprint.of(manifest) for launch in ours}
        if manifest.accuracy is not None:
            accuracies[f"{EXECUTOR}-{weights}"] = manifest.accuracy
    started += [rival.launch() for rival in rivals]
    options.say("measuring what the machine gives")
    lengths = {name: value for name, value in asdict(workload).items() if name != "seed"}
    report = campaign.blank("quantized", options, Limits.measure(), lengths)
    sizes = {launch.name: num_bytes(launch.model) for launch in started if not launch.name.startswith(TRITON)}
    with Lineup(map(WorkerSubject, started), workload.num_repeats, workload.num_attempts, options.say) as lineup:
        session = QuantizedSession(lineup, workload, contests, footprints, sizes, accuracies)
        yield from campaign.reports(report, session, rivals)


def num_bytes(model: Path) -> int:
    """Of a file, or of all files in a directory."""
    files = [model] if model.is_file() else [path for path in model.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)
