"""Benchmark `speculation`: what guessing ahead is worth, beside no guessing, static lengths, and rivals that guess too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from trierarch.benchmarks import campaign
from trierarch.benchmarks.chats import Chats
from trierarch.benchmarks.engine import EXECUTOR, TRITON, build_demo, server, speculating
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.machine import Limits
from trierarch.benchmarks.paths import OUT
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.report import Report
from trierarch.benchmarks.rivals.catalog import SPECULATING, chosen
from trierarch.benchmarks.speculation_plot import draw
from trierarch.benchmarks.speculation_session import DRAFTED, Plan, SpeculationSession, off
from trierarch.benchmarks.subjects.subject import Subject
from trierarch.benchmarks.subjects.variant import Variant
from trierarch.benchmarks.subjects.worker import WorkerSubject
from trierarch.benchmarks.workers.protocol import ADAPTIVE, TokenIds
from trierarch.benchmarks.workload import Workload
from trierarch.builder.manifest import EngineManifest, WeightType
from trierarch.python_backend.text.chat_template import ChatTemplate
from trierarch.python_backend.text.tokenizer import Tokenizer

MAX_SEQ_LEN = 1024
"""Of our engines: the longest chat is of some 350 tokens."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A run's lengths."""

    workload: Workload
    plan: Plan

    @classmethod
    def whole(cls, seed: int) -> Self:
        """As the issue asks."""
        return cls(Workload(seed=seed, concurrencies=(1, 2, 4, 8, 16, 32, 64)), Plan())

    @classmethod
    def quick(cls, seed: int) -> Self:
        """Just enough to see every path run."""
        workload = replace(Workload.quick(seed), concurrencies=(1, 2))
        return cls(
            workload,
            Plan(static_lengths=(0, 4), num_distinct=2, num_single=1, num_agentic_repeats=2, num_sweep_repeats=1),
        )


def run(options: Options) -> Iterator[Report]:
    """Build an engine with each kind of drafter, start everyone, take every figure in turns, draw the sweep.

    Raises:
        ConfigError: a rival is unknown or not installed.
        ResourceError: the demo checkpoint is not here and cannot be downloaded.
    """
    sweep = Sweep.quick(options.seed) if options.is_quick else Sweep.whole(options.seed)
    workload, plan = sweep.workload.with_streams(options.streams), sweep.plan
    rivals = chosen(options.rivals, SPECULATING)
    max_batch_size = max(workload.concurrencies)
    options.say("building the engine")
    engine, manifest = build_demo(
        max_batch_size=max_batch_size, max_seq_len=MAX_SEQ_LEN, dtype=options.dtype, speculation=None
    )
    options.say("building the engine with a draft model")
    drafted, _ = build_demo(draft=WeightType.INT4, max_batch_size=1, max_seq_len=MAX_SEQ_LEN, dtype=options.dtype)
    options.say("measuring what the machine gives")
    lengths = {name: value for name, value in asdict(workload).items() if name != "seed"}
    report = campaign.blank("speculation", options, Limits.measure(), lengths | asdict(plan) | {"dtype": options.dtype})
    subjects = [*ours(engine, drafted, plan), *(WorkerSubject(rival.launch()) for rival in rivals)]
    with Lineup(subjects, workload.num_repeats, workload.num_attempts, options.say) as lineup:
        chats = Chats(options.seed, encoder(engine, manifest))
        session = SpeculationSession(lineup, workload, [rival.name for rival in rivals], chats, plan)
        try:
            for grown in campaign.reports(report, session, rivals):
                report = grown
                yield report
        finally:
            _draw(session, report.path(OUT).with_suffix(".svg"), options)


def ours(engine: Path, drafted: Path, plan: Plan) -> Iterator[Subject]:
    """Our subjects: each engine asked in several ways.

    Fixed lengths have a process of their own: what they learn of the cost of steps is not for the adaptive one to know.
    """
    workers = {EXECUTOR: engine, TRITON: engine, DRAFTED: drafted}
    for name, model in workers.items():
        worker = WorkerSubject(speculating(model, name) if name != TRITON else server(model))
        yield Variant(name, worker, ADAPTIVE)
        yield Variant(off(name), worker, 0)
    fixed = WorkerSubject(speculating(engine, f"{EXECUTOR}-fixed"))
    yield from (Variant(name, fixed, length) for name, length in plan.static_names().items() if length)


def encoder(engine: Path, manifest: EngineManifest) -> ChatEncoder:
    """Of the engine's own tokenizer and chat template."""
    tokenizer = Tokenizer.load(engine)
    template = ChatTemplate.load(engine, manifest, tokenizer)
    assert template is not None  # the demo checkpoint is an instructed one
    return ChatEncoder(tokenizer, template)


@dataclass(frozen=True, slots=True)
class ChatEncoder:
    """A user's message as the token ids of a whole prompt."""

    tokenizer: Tokenizer
    template: ChatTemplate

    def __call__(self, text: str) -> TokenIds:
        """See Chats.encode."""
        prompt = self.template.render([{"role": "user", "content": text}])
        return list(self.tokenizer.encode(prompt, add_special_tokens=False))


def _draw(session: SpeculationSession, path: Path, options: Options) -> None:
    """Of a run that was cut, what there is."""
    try:
        draw(path, session.points)
    except ImportError:
        options.say("no plot: install matplotlib with: pip install --group bench")
    else:
        options.say(f"drawn to {path}")
