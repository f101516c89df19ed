"""CpuSession: the figures of the benchmark `cpu`, in the order they are taken, with their goals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from trierarch.benchmarks import probes
from trierarch.benchmarks.engine import EXECUTOR, OURS, TRITON, Footprint
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.measurement import Measurement, Sample
from trierarch.benchmarks.report import Better, Figure, Goal, Of
from trierarch.benchmarks.subjects.subject import Subject
from trierarch.benchmarks.verification import doubt
from trierarch.benchmarks.workers.protocol import KV_CACHE_BYTES, Ready
from trierarch.benchmarks.workload import Workload

RSS_ALLOWANCE: Final = 350e6
"""Bytes that a process may hold beyond its weights and its KV cache."""
AGGREGATE_GOALS: Final = {8: 1.6, 32: 2.0}
"""Concurrency -> ratio to the best rival."""


class Taken(NamedTuple):
    """A figure and what each subject gave."""

    figure: Figure
    measured: dict[str, Measurement]
    ours: tuple[str, ...] = OURS
    """Of our subjects those that have it, measured or not."""


class CpuSession:
    """Takes the figures from a lineup, once."""

    def __init__(
        self, lineup: Lineup, workload: Workload, footprint: Footprint, read_bandwidth: Callable[[], float]
    ) -> None:
        """Nothing runs before `figures`; `read_bandwidth` measures the machine's GB/s now."""
        self.ready: dict[str, Ready] = {}
        """Subject -> what it said when it was loaded."""
        self.doubts: list[str] = []
        """Subjects that do not answer as the checkpoint does."""
        self._lineup = lineup
        self._workload = workload
        self._footprint = footprint
        self._read_bandwidth = read_bandwidth

    def figures(self) -> Iterator[Taken]:
        """Start everyone and take every figure."""
        yield self._cold_start()
        self._lineup.each(self._verify)
        self._lineup.each(lambda subject: probes.warm_up(self._workload, subject))
        yield from self._decode()
        yield from self._first_token()
        yield from self._aggregate()
        yield from self._prefix()
        yield self._peak_rss()

    def _cold_start(self) -> Taken:
        figure = Figure(name="cold_start", unit="s", better=Better.LOWER)

        def probe(subject: Subject, key: str) -> float:
            subject.close()
            self.ready[subject.name] = subject.start()
            subject.generate([self._workload.prompt(key, self._workload.short_prompt)], 1)
            return subject.seconds_since_start()

        return Taken(figure, self._lineup.measure(figure.name, probe))

    def _verify(self, subject: Subject) -> None:
        what = doubt(subject)
        if what is not None:
            self.doubts.append(what)

    def _decode(self) -> Iterator[Taken]:
        lengths = self._workload.short_prompt, self._workload.long_prompt
        short, long = (
            Figure(name=f"decode_b1_p{n}", unit="tok/s", better=Better.HIGHER, goal=_ratio(1.0)) for n in lengths
        )
        bandwidths: list[Sample] = []

        def read_bandwidth() -> None:
            """In the same minute as each repeat: as the rate at which weights could be streamed."""
            bandwidths.append(Sample(self._read_bandwidth() * 1e9 / self._footprint.streamed))

        rates = self._lineup.measure(short.name, probes.decode_rate(self._workload, lengths[0]), read_bandwidth)
        yield Taken(short, rates)
        roofline = Measurement(tuple(bandwidths))
        share = Figure(name="bandwidth_share_b1", unit="%", better=Better.HIGHER, goal=Goal(Of.VALUE, 85))
        yield Taken(share, {name: rate.share_of(roofline) for name, rate in rates.items()})
        yield Taken(long, self._lineup.measure(long.name, probes.decode_rate(self._workload, lengths[1])))

    def _first_token(self) -> Iterator[Taken]:
        for length, goal in ((self._workload.short_prompt, None), (self._workload.long_prompt, _ratio(1.0))):
            figure = Figure(name=f"ttft_p{length}", unit="ms", better=Better.LOWER, goal=goal)
            probe = probes.time_to_first_token(self._workload, length)
            yield Taken(figure, self._lineup.measure(figure.name, probe))

    def _aggregate(self) -> Iterator[Taken]:
        rates: dict[str, Measurement] = {}
        for concurrency in self._workload.concurrencies:
            bound = AGGREGATE_GOALS.get(concurrency)
            goal = None if bound is None else _ratio(bound)
            figure = Figure(name=f"aggregate_c{concurrency}", unit="tok/s", better=Better.HIGHER, goal=goal)
            rates = self._lineup.measure(figure.name, probes.aggregate_rate(self._workload, concurrency))
            yield Taken(figure, rates)
        toll = Figure(name=f"triton_share_c{concurrency}", unit="%", better=Better.HIGHER, goal=Goal(Of.VALUE, 93))
        has_both = EXECUTOR in rates and TRITON in rates
        yield Taken(toll, {TRITON: rates[TRITON].share_of(rates[EXECUTOR])} if has_both else {}, ours=(TRITON,))

    def _prefix(self) -> Iterator[Taken]:
        count, length = self._workload.num_prefix_sharers, self._workload.long_prompt
        shared = Figure(name=f"prefix_shared_c{count}_p{length}", unit="ms", better=Better.LOWER)
        distinct = Figure(name=f"prefix_distinct_c{count}_p{length}", unit="ms", better=Better.LOWER)
        with_prefix = self._lineup.measure(shared.name, probes.shared_prefix(self._workload))
        yield Taken(shared, with_prefix)
        without = self._lineup.measure(distinct.name, probes.distinct_prompts(self._workload))
        yield Taken(distinct, without)
        share = Figure(name="prefix_share_of_cold", unit="%", better=Better.LOWER, goal=Goal(Of.VALUE, 5))
        yield Taken(share, {name: with_prefix[name].share_of(cold) for name, cold in without.items()})

    def _peak_rss(self) -> Taken:
        bound = self._footprint.weights + KV_CACHE_BYTES + RSS_ALLOWANCE
        figure = Figure(name="peak_rss", unit="MB", better=Better.LOWER, goal=Goal(Of.VALUE, round(bound / 1e6)))
        measured: dict[str, Measurement] = {}

        def read(subject: Subject) -> None:
            measured[subject.name] = Measurement.of([subject.peak_rss() / 1e6])

        self._lineup.each(read)
        return Taken(figure, measured)


def _ratio(bound: float) -> Goal:
    return Goal(Of.RATIO, bound)
