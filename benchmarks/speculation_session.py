"""SpeculationSession: what guessing ahead is worth, by kind of chat and number of streams, with the goals."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from trierarch.benchmarks import probes
from trierarch.benchmarks.chats import Chats, Kind
from trierarch.benchmarks.engine import EXECUTOR, TRITON
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.measurement import Measurement
from trierarch.benchmarks.report import Better, Figure, Goal, Of
from trierarch.benchmarks.session import Contests, Session, Stage, Taken
from trierarch.benchmarks.subjects.subject import Subject
from trierarch.benchmarks.workers.protocol import TokenIds
from trierarch.benchmarks.workload import Workload

DRAFTED: Final = "executor-draft"
"""Our executor with an int4 engine of the same model as its draft, and no other drafter."""
SPEEDUP_GOALS: Final = {Kind.COPY: 3.0, Kind.EDIT: 3.0, Kind.PROSE: 1.1}
"""Times no speculation, one stream."""
DRAFTED_GOAL: Final = Goal(Of.VALUE, 1.4)
RIVAL_GOALS: Final = dict.fromkeys((Kind.COPY, Kind.EDIT), Goal(Of.RATIO, 1.3))
OFF_GOAL: Final = Goal(Of.VALUE, 98)
STATIC_GOAL: Final = Goal(Of.RATIO, 0.97)
ACCEPTANCE_GOAL: Final = Goal(Of.VALUE, 80)
RISE_GOAL: Final = Goal(Of.VALUE, -1)
"""In points: a share that has come to its height may tremble there."""


def off(name: str) -> str:
    """Name of the subject that is `name` without speculation."""
    return f"{name}-off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is swept over, beside the workload's concurrencies."""

    static_lengths: tuple[int, ...] = (0, 2, 4, 8, 16)
    num_distinct: int = 8
    """Prompts of one call; more streams send them several times, so that prompts take no longer than their answers."""
    num_single: int = 3
    """Prompts of one rate of one stream, one behind the other: how well a single one is guessed says little."""
    num_agentic_repeats: int = 6
    num_sweep_repeats: int = 2
    """Of more than eight streams, which take long."""

    def static_names(self) -> dict[str, int]:
        """Subject -> its length; without any it is our executor without speculation."""
        return {f"{EXECUTOR}-{length}" if length else off(EXECUTOR): length for length in self.static_lengths}


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve."""

    kind: Kind
    num_streams: int
    rates: Mapping[str, float]
    """Subject -> tokens a second of all streams."""


class SpeculationSession(Session):
    """Takes the figures from a lineup, once."""

    def __init__(self, lineup: Lineup, workload: Workload, rivals: Sequence[str], chats: Chats, plan: Plan) -> None:
        """Nothing runs before `figures`. The lineup has whoever of EXECUTOR, TRITON, DRAFTED, these without speculation,
        the plan's static lengths and `rivals` takes part."""
        super().__init__(lineup, workload, _contests(rivals, plan))
        self.points: list[Point] = []
        """What was measured so far, of our executor and its variants."""
        self._rivals = tuple(rivals)
        self._chats = chats
        self._plan = plan

    def stages(self) -> list[Stage]:
        """See Session.stages."""
        return [
            Stage("start", self.start),
            Stage("warm-up", self.prepare),
            *(Stage(f"{kind}, one stream", partial(self._one_stream, kind)) for kind in Kind),
            Stage("a draft model", self._drafted),
            Stage("agentic requests again and again", self._agentic_repeats),
            *(
                Stage(f"{kind}, {count} streams", partial(self._streams, kind, count))
                for count in self.workload.concurrencies
                if count > 1
                for kind in Kind
            ),
        ]

    def prepare(self) -> Iterator[Taken]:
        """Look whether everybody runs the checkpoint; let the rivals see one stream and ours any number. No figure."""
        self.lineup.each(self._verify)

        def warm_up(subject: Subject) -> None:
            counts = self.workload.concurrencies if subject.name in self._sweepers() else (1,)
            for count in counts:
                for kind in (Kind.COPY, Kind.PROSE):
                    subject.generate(self._prompts(kind, "warm-up", count), self.workload.num_output_tokens // 4)

        self.lineup.each(warm_up)
        yield from ()

    def _one_stream(self, kind: Kind) -> Iterator[Taken]:
        ours = [EXECUTOR, TRITON]
        among = {*ours, *map(off, ours), *self._sweepers(), *self._rivals}
        rates = self._rates(kind, 1, among)
        decode = Figure(name=f"decode_{kind}_c1", unit="tok/s", better=Better.HIGHER, goal=RIVAL_GOALS.get(kind))
        yield Taken(decode, _only(rates, [*ours, *self._rivals]), ours=tuple(ours))
        yield _speedup(f"speedup_{kind}_c1", SPEEDUP_GOALS.get(kind), rates, ours)
        yield from self._against_variants(kind, 1, rates)

    def _streams(self, kind: Kind, count: int) -> Iterator[Taken]:
        rates = self._rates(kind, count, self._sweepers())
        decode = Figure(name=f"decode_{kind}_c{count}", unit="tok/s", better=Better.HIGHER)
        yield Taken(decode, _only(rates, [EXECUTOR]), ours=(EXECUTOR,))
        yield from self._against_variants(kind, count, rates)

    def _drafted(self) -> Iterator[Taken]:
        rates = self._rates(Kind.PROSE, 1, {DRAFTED, off(DRAFTED)}, "draft/")
        decode = Figure(name="decode_draft_model_c1", unit="tok/s", better=Better.HIGHER)
        yield Taken(decode, _only(rates, [DRAFTED]), ours=(DRAFTED,))
        yield _speedup("speedup_draft_model_c1", DRAFTED_GOAL.bound, rates, [DRAFTED])

    def _agentic_repeats(self) -> Iterator[Taken]:
        """The same requests several times: of what was guessed, how much was right; of the answers, how much was guessed."""
        accepted: list[list[float]] = [[] for _ in range(self._plan.num_agentic_repeats)]
        guessed: list[list[float]] = [[] for _ in range(self._plan.num_agentic_repeats)]

        def ask(subject: Subject) -> None:
            if subject.name != EXECUTOR:
                return
            for trial in range(self.workload.num_repeats):
                prompts = self._prompts(Kind.AGENTIC, f"repeats/{trial}", self._plan.num_distinct)
                for accepted_now, guessed_now in zip(accepted, guessed, strict=True):
                    timing = subject.generate(prompts, self.workload.num_output_tokens)
                    num_accepted = timing.counters.get("num_accepted_draft_tokens", 0)
                    accepted_now.append(100 * num_accepted / max(1, timing.counters.get("num_draft_tokens", 0)))
                    guessed_now.append(100 * num_accepted / timing.num_tokens)

        self.lineup.each(ask)
        last = self._plan.num_agentic_repeats
        for name, shares in (("acceptance", accepted), ("guessed", guessed)):
            for repeat, values in enumerate(shares, start=1):
                goal = ACCEPTANCE_GOAL if (name, repeat) == ("acceptance", last) else None
                figure = Figure(name=f"{name}_agentic_r{repeat}", unit="%", better=Better.HIGHER, goal=goal)
                yield Taken(figure, _of_executor(values), ours=(EXECUTOR,))
        rise = Figure(name="guessed_agentic_least_rise", unit="points", better=Better.HIGHER, goal=RISE_GOAL)
        medians = [statistics.median(values) for values in guessed if values]
        yield Taken(rise, _of_executor(_least_rise(medians)), ours=(EXECUTOR,))

    def _against_variants(self, kind: Kind, count: int, rates: Mapping[str, Measurement]) -> Iterator[Taken]:
        """Our adaptive speculation beside none, and beside each static length."""
        ours = {name: rate.median for name, rate in rates.items() if name in self._sweepers()}
        self.points.append(Point(kind, count, ours))
        share = Figure(name=f"share_of_off_{kind}_c{count}", unit="%", better=Better.HIGHER, goal=OFF_GOAL)
        measured = {}
        if EXECUTOR in rates and off(EXECUTOR) in rates:
            measured[EXECUTOR] = rates[EXECUTOR].share_of(rates[off(EXECUTOR)])
        yield Taken(share, measured, ours=(EXECUTOR,))
        static = Figure(name=f"static_{kind}_c{count}", unit="tok/s", better=Better.HIGHER, goal=STATIC_GOAL)
        yield Taken(static, _only(rates, [EXECUTOR, *self._plan.static_names()]), ours=(EXECUTOR,))

    def _rates(self, kind: Kind, count: int, among: set[str], key: str = "") -> dict[str, Measurement]:
        """Tokens a second behind the first, of prompts that are computed already: speculation is about the rest."""
        num_before = self.workload.num_output_tokens if kind is Kind.AGENTIC else 1

        def probe(subject: Subject, attempt: str) -> float:
            if count > 1:
                return self._rate(subject, self._prompts(kind, attempt, count), num_before)
            prompts = self._chats.prompts(kind, attempt, self._plan.num_single)
            return statistics.harmonic_mean([self._rate(subject, [prompt], num_before) for prompt in prompts])

        num_repeats = self.workload.num_repeats if count <= 8 else self._plan.num_sweep_repeats
        return self.lineup.measure(f"{key}{kind}_c{count}", probe, num_repeats=num_repeats, among=among)

    def _rate(self, subject: Subject, prompts: list[TokenIds], num_before: int) -> float:
        """Of all prompts together, when each was answered before with `num_before` tokens."""
        subject.generate(prompts, num_before)
        return probes.rate_behind_first(self.workload, subject, prompts, prompts)

    def _prompts(self, kind: Kind, key: str, count: int) -> list[TokenIds]:
        distinct = self._chats.prompts(kind, key, min(count, self._plan.num_distinct))
        return [distinct[index % len(distinct)] for index in range(count)]

    def _sweepers(self) -> set[str]:
        return {EXECUTOR, *self._plan.static_names()}


def _contests(rivals: Sequence[str], plan: Plan) -> Contests:
    variants = [*plan.static_names(), off(TRITON), off(DRAFTED)]
    ours = {EXECUTOR: (*plan.static_names(), *rivals), TRITON: tuple(rivals), DRAFTED: ()}
    return ours | dict.fromkeys(variants, ())


def _only(measured: Mapping[str, Measurement], names: Iterable[str]) -> dict[str, Measurement]:
    return {name: measured[name] for name in names if name in measured}


def _speedup(name: str, bound: float | None, rates: Mapping[str, Measurement], ours: Sequence[str]) -> Taken:
    """Of those of `ours` that were measured with speculation and without."""
    goal = None if bound is None else Goal(Of.VALUE, bound)
    both = [subject for subject in ours if subject in rates and off(subject) in rates]
    measured = {subject: rates[subject].times(rates[off(subject)]) for subject in both}
    return Taken(Figure(name=name, unit="×", better=Better.HIGHER, goal=goal), measured, ours=tuple(ours))


def _of_executor(values: Sequence[float]) -> dict[str, Measurement]:
    return {EXECUTOR: Measurement.of(values)} if values else {}


def _least_rise(values: Sequence[float]) -> list[float]:
    """Of a value over the one before it; nothing of fewer than two values."""
    return [min(later - earlier for earlier, later in itertools.pairwise(values))] if len(values) > 1 else []
