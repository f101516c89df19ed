"""Benchmark `lora`: what adapters cost: mixed in a batch, a thousand registered, and cold."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Self

from trierarch.benchmarks import campaign
from trierarch.benchmarks.adapter_files import write_adapters, write_peft_adapters
from trierarch.benchmarks.engine import adapting, build_demo
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.lora_session import EXECUTOR, SLOTS, LoraSession, Plan
from trierarch.benchmarks.machine import Limits
from trierarch.benchmarks.paths import OUT
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.report import Report
from trierarch.benchmarks.rivals.catalog import ADAPTING, chosen, left_out
from trierarch.benchmarks.subjects.subject import Subject
from trierarch.benchmarks.subjects.worker import Launch, WorkerSubject
from trierarch.benchmarks.workers.adapting import ADAPTERS
from trierarch.benchmarks.workers.protocol import adapters_environment
from trierarch.benchmarks.workload import Workload
from trierarch.builder.manifest import Lora

FOLDER: Final = OUT / "lora"
"""Holds the engines and, beside them, their adapters."""
PEFT_ADAPTERS: Final = "peft"
"""The folder of those that rivals read too."""
HOST_BYTES: Final = 512 << 20
"""Of loaded adapters: a tenth of what a thousand of them take."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A run's lengths."""

    workload: Workload
    plan: Plan

    @classmethod
    def whole(cls, seed: int) -> Self:
        """As the issue asks."""
        return cls(Workload(seed=seed, concurrencies=(8, 32)), Plan())

    @classmethod
    def quick(cls, seed: int) -> Self:
        """Just enough to see every path run."""
        workload = replace(Workload.quick(seed), concurrencies=(2, 4))
        return cls(workload, Plan(registered=(1, 8), num_requests=8, num_cold=1, contested_streams=2))


def run(options: Options) -> Iterator[Report]:
    """Build engines with few and with many slots, write their adapters, start everyone, take every figure in turns.

    Raises:
        ConfigError: a rival is unknown or not installed.
        ResourceError: the demo checkpoint is not here and cannot be downloaded, or the disk is full.
    """
    sweep = Sweep.quick(options.seed) if options.is_quick else Sweep.whole(options.seed)
    workload, plan = sweep.workload.with_streams(options.streams), sweep.plan
    rivals, missing = chosen(options.rivals, ADAPTING), left_out(options.rivals, ADAPTING)
    most = max(workload.concurrencies)
    engines = {
        EXECUTOR: Lora(max_adapters=most, host_bytes=HOST_BYTES),
        SLOTS: Lora(max_adapters=plan.num_slots, host_bytes=HOST_BYTES),
    }
    subjects: list[Subject] = []
    manifests = []
    for name, lora in engines.items():
        options.say(f"building an engine with {lora.max_adapters} slots")
        engine, manifest = build_demo(output=FOLDER / name, max_batch_size=most, dtype=options.dtype, lora=lora)
        subjects.append(WorkerSubject(adapting(engine, name)))
        manifests.append(manifest)
    ranks = plan.ranks(workload)
    options.say(f"writing {len(ranks)} adapters")
    write_adapters(_fresh(FOLDER / ADAPTERS), manifests[0], ranks, options.seed)  # of one model: they fit both
    write_peft_adapters(_fresh(FOLDER / PEFT_ADAPTERS), manifests[0], plan.contested_ranks, options.seed)
    subjects += [_with_adapters(rival.launch()) for rival in rivals]
    for line in missing:
        options.say(line)
    options.say("measuring what the machine gives")
    lengths = {name: value for name, value in asdict(workload).items() if name != "seed"}
    lengths |= asdict(plan) | {"dtype": options.dtype, "host_bytes": HOST_BYTES}
    report = replace(campaign.blank("lora", options, Limits.measure(), lengths), notes=tuple(missing))
    with Lineup(subjects, workload.num_repeats, workload.num_attempts, options.say) as lineup:
        session = LoraSession(lineup, workload, plan, [rival.name for rival in rivals])
        yield from campaign.reports(report, session, rivals)


def _with_adapters(launch: Launch) -> WorkerSubject:
    environment = {**launch.environment, **adapters_environment(FOLDER / PEFT_ADAPTERS)}
    return WorkerSubject(replace(launch, environment=environment))


def _fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory
