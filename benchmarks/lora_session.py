"""LoraSession: what adapters cost, beside the same streams without."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.measurement import Measurement
from trierarch.benchmarks.report import Better, Figure, Goal, Of
from trierarch.benchmarks.session import Session, Stage, Taken
from trierarch.benchmarks.subjects.subject import Subject, SubjectFailed, Timing
from trierarch.benchmarks.subjects.worker import WorkerSubject
from trierarch.benchmarks.workers.protocol import Steering, TokenIds
from trierarch.benchmarks.workload import Workload

EXECUTOR: Final = "executor"
"""With as many slots as streams."""
SLOTS: Final = "executor-slots"
"""With fewer slots than adapters."""
BASE: Final = "base"
MIXES: Final = ("four", "identical", "distinct", "zipf")
CONTESTED: Final = "four"
KINDS: Final = {"four": 4, "identical": 1}
"""Mix -> different adapters, whatever the number of streams."""
GOALS: Final = {"four": Goal(Of.VALUE, 90), "distinct": Goal(Of.VALUE, 85)}
"""Percent of the base model's rate: of eight streams over four adapters, and of as many adapters as the most streams."""
SPREAD_GOAL: Final = Goal(Of.VALUE, 95)
REGISTERED_GOAL: Final = Goal(Of.VALUE, 90)
COLD_GOAL: Final = Goal(Of.VALUE, 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked for, beside the workload's concurrencies."""

    rank: int = 8
    cold_rank: int = 16
    registered: tuple[int, ...] = (1, 10, 100, 1000)
    num_slots: int = 16
    num_requests: int = 192
    """Of one sample with many registered adapters."""
    num_short_tokens: int = 32
    """Of each of their answers."""
    zipf_exponent: float = 1.0
    num_cold: int = 9
    """Adapters that are asked for the first time, in one sample."""
    contested_streams: int = 8
    """As many, over CONTESTED, is what rivals are asked for too."""

    @property
    def contested_ranks(self) -> dict[str, int]:
        """Adapter -> rank, of those that rivals have too."""
        return dict.fromkeys(map(name_of, range(KINDS[CONTESTED])), self.rank)

    def ranks(self, workload: Workload) -> dict[str, int]:
        """Adapter -> rank, of all that are written. Each sample wants cold adapters of its own."""
        num_warm = max(*self.registered, *workload.concurrencies)
        num_cold = workload.num_repeats * workload.num_attempts * self.num_cold
        warm = dict.fromkeys(map(name_of, range(num_warm)), self.rank)
        return warm | dict.fromkeys(map(cold_name, range(num_cold)), self.cold_rank)


def name_of(index: int) -> str:
    """Of an adapter, the most popular first."""
    return f"a{index:04}"


def cold_name(index: int) -> str:
    """Of an adapter that is asked for once."""
    return f"cold{index:04}"


class LoraSession(Session):
    """Takes the figures from a lineup of EXECUTOR, SLOTS and rivals, once."""

    def __init__(self, lineup: Lineup, workload: Workload, plan: Plan, rivals: Sequence[str] = ()) -> None:
        """Nothing runs before `figures`."""
        super().__init__(lineup, workload, {EXECUTOR: rivals, SLOTS: ()})
        self._plan = plan
        self._num_cold = itertools.count()

    def stages(self) -> list[Stage]:
        """See Session.stages."""
        return [
            Stage("start", self.start),
            Stage("warm-up", self.prepare),
            *(Stage(f"{count} streams", partial(self._streams, count)) for count in self.workload.concurrencies),
            Stage("many registered", self._registered),
            Stage("cold adapters", self._cold),
        ]

    def prepare(self) -> Iterator[Taken]:
        """See Session.prepare. Whoever takes part in a mix is loaded."""
        yield from super().prepare()

        def warm_up(subject: Subject) -> None:
            for count in self.workload.concurrencies:
                for mix in self._mixes(subject.name, count):
                    prompts = self.workload.prompts(f"warm-up/{mix}", [self.workload.short_prompt] * count)
                    _ask(subject, prompts, 2, self._names(mix, count))

        self.lineup.each(warm_up)

    def _streams(self, count: int) -> Iterator[Taken]:
        """Rates of mixes, taken in turns with the base model's."""
        rates: dict[str, dict[str, list[float]]] = {}  # subject -> mix -> tokens a second

        def probe(subject: Subject, key: str) -> float:
            mixes = self._mixes(subject.name, count)
            own = rates.setdefault(subject.name, {mix: [] for mix in mixes})
            turn = len(own[BASE]) % len(mixes)
            for mix in mixes[turn:] + mixes[:turn]:
                prompts = self.workload.prompts(f"{key}/{mix}", self.workload.spread(count))
                timing = _ask(subject, prompts, self.workload.num_output_tokens, self._names(mix, count))
                own[mix].append(timing.num_tokens / timing.seconds)
            return own[BASE][-1]

        among = {name for name in (EXECUTOR, *self.contests[EXECUTOR]) if self._mixes(name, count)}
        base = self.lineup.measure(f"aggregate_base_c{count}", probe, among=among)
        if EXECUTOR not in base:
            return
        yield Taken(_rate(f"aggregate_{BASE}_c{count}"), base, ours=(EXECUTOR,))
        taken = {name: {mix: Measurement.of(values) for mix, values in rates[name].items()} for name in base}
        for mix in MIXES:
            have = {name: measured for name, measured in taken.items() if mix in measured}
            rate = {name: measured[mix] for name, measured in have.items()}
            yield Taken(_rate(f"aggregate_{mix}_c{count}"), rate, ours=(EXECUTOR,))
            is_asked = (mix, count) in ((CONTESTED, 8), ("distinct", max(self.workload.concurrencies)))
            figure = _percent(f"share_of_base_{mix}_c{count}", GOALS[mix] if is_asked else None)
            share = {name: measured[mix].share_of(measured[BASE]) for name, measured in have.items()}
            yield Taken(figure, share, ours=(EXECUTOR,))
        compared = [taken[EXECUTOR][mix].median for mix in ("identical", "distinct", "zipf")]
        spread = Measurement.of([100 * min(compared) / max(compared)])
        yield Taken(_percent(f"slowest_of_fastest_mix_c{count}", SPREAD_GOAL), {EXECUTOR: spread}, ours=(EXECUTOR,))

    def _registered(self) -> Iterator[Taken]:
        """Rates of a Zipf load over more and more adapters, with few slots."""
        measured: dict[int, Measurement] = {}
        most_bytes = 0.0
        for count in self._plan.registered:

            def probe(subject: Subject, key: str, count: int = count) -> float:
                nonlocal most_bytes
                names = self._zipf(f"{key}/names", count, self._plan.num_requests)
                prompts = self.workload.prompts(key, [self.workload.short_prompt] * len(names))
                timing = _ask(subject, prompts, self._plan.num_short_tokens, names)
                if timing.counters["adapter_load_failures"]:
                    raise SubjectFailed(f"{subject.name}: {timing.counters['adapter_load_failures']:g} loads failed")
                most_bytes = max(most_bytes, timing.counters["adapter_bytes"])
                return timing.num_tokens / timing.seconds

            figure = _rate(f"aggregate_registered_{count}")
            taken = self.lineup.measure(figure.name, probe, among={SLOTS})
            if SLOTS not in taken:
                return
            measured[count] = taken[SLOTS]
            yield Taken(figure, taken, ours=(SLOTS,))
        few, many = self._plan.registered[min(1, len(self._plan.registered) - 1)], self._plan.registered[-1]
        share = _percent(f"share_of_{few}_with_{many}", REGISTERED_GOAL)
        yield Taken(share, {SLOTS: measured[many].share_of(measured[few])}, ours=(SLOTS,))
        figure = Figure(name="most_adapter_bytes", unit="MB", better=Better.LOWER)
        yield Taken(figure, {SLOTS: Measurement.of([most_bytes / 1e6])}, ours=(SLOTS,))

    def _cold(self) -> Iterator[Taken]:
        """Milliseconds by which the first token of an adapter's first request is later than that of its second."""

        def probe(subject: Subject, key: str) -> float:
            delays = []
            for index in range(self._plan.num_cold):
                name = cold_name(next(self._num_cold))
                seconds = [
                    _ask(
                        subject, [self.workload.prompt(f"{key}/{index}/{turn}", self.workload.short_prompt)], 1, [name]
                    )
                    for turn in ("cold", "warm")
                ]
                delays.append(1000 * (seconds[0].seconds - seconds[1].seconds))
            return max(delays)

        figure = Figure(name="cold_ttft_delay", unit="ms", better=Better.LOWER, goal=COLD_GOAL)
        yield Taken(figure, self.lineup.measure(figure.name, probe, among={EXECUTOR}), ours=(EXECUTOR,))

    def _mixes(self, subject: str, count: int) -> list[str]:
        """What a subject is asked for with so many streams."""
        if subject in self.contests:
            return [BASE, *MIXES]
        return [BASE, CONTESTED] if count == self._plan.contested_streams else []

    def _names(self, mix: str, count: int) -> list[str]:
        if mix == BASE:
            return []
        if mix == "zipf":
            return self._zipf(f"mix/{count}", count, count)
        kinds = KINDS.get(mix, count)
        return [name_of(index % kinds) for index in range(count)]

    def _zipf(self, key: str, num_adapters: int, count: int) -> list[str]:
        chance = random.Random(f"{self.workload.seed}/{key}")
        weights = [1 / (rank + 1) ** self._plan.zipf_exponent for rank in range(num_adapters)]
        return [name_of(index) for index in chance.choices(range(num_adapters), weights, k=count)]


def _ask(subject: Subject, prompts: list[TokenIds], num_tokens: int, adapters: Sequence[str]) -> Timing:
    assert isinstance(subject, WorkerSubject)
    return subject.generate(prompts, num_tokens, Steering(adapters=tuple(adapters)))


def _rate(name: str) -> Figure:
    return Figure(name=name, unit="tok/s", better=Better.HIGHER)


def _percent(name: str, goal: Goal | None) -> Figure:
    return Figure(name=name, unit="%", better=Better.HIGHER, goal=goal)
