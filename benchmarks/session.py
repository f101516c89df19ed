"""Session: one run's figures in the order they are taken, and what is common to all benchmarks of engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from trierarch.benchmarks import probes
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.measurement import Measurement
from trierarch.benchmarks.pace import Pace
from trierarch.benchmarks.report import Better, Figure, Goal, Row, compare
from trierarch.benchmarks.subjects.subject import Subject
from trierarch.benchmarks.verification import doubt
from trierarch.benchmarks.workers.protocol import Ready
from trierarch.benchmarks.workload import Workload

Contests = Mapping[str, Sequence[str]]
"""Each of our subjects -> the rivals it is held against."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A figure and what each subject gave."""

    figure: Figure
    measured: Mapping[str, Measurement]
    ours: tuple[str, ...] | None = None
    """Of our subjects those that have the figure, measured or not; None is all of them."""
    goals: Mapping[str, Goal] = field(default_factory=dict)
    """Goals that are not the same for each of ours."""


class Stage(NamedTuple):
    """A part of a run."""

    name: str
    take: Callable[[], Iterable[Taken]]


class Session(ABC):
    """Takes the figures from a lineup, once."""

    def __init__(self, lineup: Lineup, workload: Workload, contests: Contests) -> None:
        """Nothing runs before `figures`."""
        self.ready: dict[str, Ready] = {}
        """Subject -> what it said when it was loaded."""
        self.doubts: list[str] = []
        """Subjects that do not answer as the checkpoint does."""
        self.lineup = lineup
        self.workload = workload
        self.contests = contests

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The run, in order. The first one starts everybody."""

    def figures(self) -> Iterator[Taken]:
        """Run all stages."""
        stages = self.stages()
        pace = Pace(len(stages))
        for stage in stages:
            self.lineup.say(pace.begin(stage.name))
            yield from stage.take()

    def rows(self, taken: Taken) -> Iterator[Row]:
        """Each of ours beside its rivals."""
        for subject in self.contests if taken.ours is None else taken.ours:
            goal = taken.goals.get(subject, taken.figure.goal)
            rivals = {name: taken.measured[name] for name in self.contests[subject] if name in taken.measured}
            yield from compare(replace(taken.figure, goal=goal), subject, taken.measured.get(subject), rivals)

    def start(self) -> Iterator[Taken]:
        """Start everybody; no figure."""
        self.lineup.each(self._start)
        yield from ()

    def prepare(self) -> Iterator[Taken]:
        """Look whether everybody runs the checkpoint, and let them see every shape; no figure."""
        self.lineup.each(self._verify)
        self.lineup.each(lambda subject: probes.warm_up(self.workload, subject))
        yield from ()

    def decode(self, length: int, goal: Goal | None = None) -> Iterator[Taken]:
        """decode_b1_p{length}."""
        figure = Figure(name=f"decode_b1_p{length}", unit="tok/s", better=Better.HIGHER, goal=goal)
        yield Taken(figure, self.lineup.measure(figure.name, probes.decode_rate(self.workload, length)))

    def first_token(self, length: int, goal: Goal | None = None) -> Iterator[Taken]:
        """ttft_p{length}."""
        figure = Figure(name=f"ttft_p{length}", unit="ms", better=Better.LOWER, goal=goal)
        yield Taken(figure, self.lineup.measure(figure.name, probes.time_to_first_token(self.workload, length)))

    def aggregate(self, concurrency: int, goal: Goal | None = None, num_repeats: int | None = None) -> Iterator[Taken]:
        """aggregate_c{concurrency}."""
        figure = Figure(name=f"aggregate_c{concurrency}", unit="tok/s", better=Better.HIGHER, goal=goal)
        probe = probes.aggregate_rate(self.workload, concurrency)
        yield Taken(figure, self.lineup.measure(figure.name, probe, num_repeats=num_repeats))

    def peak_rss(self, goals: Mapping[str, Goal]) -> Iterator[Taken]:
        """peak_rss, as it is now."""
        measured: dict[str, Measurement] = {}

        def read(subject: Subject) -> None:
            measured[subject.name] = Measurement.of([subject.peak_rss() / 1e6])

        self.lineup.each(read)
        yield Taken(Figure(name="peak_rss", unit="MB", better=Better.LOWER), measured, goals=goals)

    def _start(self, subject: Subject) -> None:
        self.lineup.say(f"starting {subject.name}")
        self.ready[subject.name] = subject.start()

    def _verify(self, subject: Subject) -> None:
        what = doubt(subject)
        if what is not None:
            self.doubts.append(what)
