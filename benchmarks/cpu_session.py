"""CpuSession: the figures of the benchmark `cpu`, in the order they are taken, with their goals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from trierarch.benchmarks import probes
from trierarch.benchmarks.engine import EXECUTOR, TRITON, Footprint
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.measurement import Measurement, Sample
from trierarch.benchmarks.report import Better, Figure, Goal, Of
from trierarch.benchmarks.session import Contests, Session, Stage, Taken
from trierarch.benchmarks.subjects.subject import Subject
from trierarch.benchmarks.workload import Workload

COLD_START_GOALS: Final = {EXECUTOR: Goal(Of.VALUE, 1.8), TRITON: Goal(Of.VALUE, 2.5)}
AGGREGATE_GOALS: Final = {8: 1.6, 32: 2.0}
"""Concurrency -> ratio to the best rival."""


class CpuSession(Session):
    """Takes the figures from a lineup, once."""

    def __init__(
        self,
        lineup: Lineup,
        workload: Workload,
        contests: Contests,
        footprint: Footprint,
        read_bandwidth: Callable[[], float],
        step_probe: Subject,
    ) -> None:
        """Nothing runs before `figures`; `read_bandwidth` measures the machine's GB/s now; `step_probe` is our executor
        with its steps timed, kept out of the lineup."""
        super().__init__(lineup, workload, contests)
        self._footprint = footprint
        self._read_bandwidth = read_bandwidth
        self._step_probe = step_probe

    def stages(self) -> list[Stage]:
        """See Session.stages."""
        short, long = self.workload.short_prompt, self.workload.long_prompt
        return [
            Stage("cold start", self._cold_start),
            Stage("warm-up", self.prepare),
            Stage(f"decode, {short}-token prompt", partial(self._decode_and_bandwidth, short)),
            Stage(f"decode, {long}-token prompt", partial(self.decode, long, _ratio(1.0))),
            Stage(f"first token, {short}-token prompt", partial(self.first_token, short)),
            Stage(f"first token, {long}-token prompt", partial(self.first_token, long, _ratio(1.0))),
            *(
                Stage(f"{concurrency} streams", partial(self._aggregate, concurrency))
                for concurrency in self.workload.concurrencies
            ),
            Stage("shared prefix", self._prefix),
            Stage("host overhead", self._host_overhead),
            Stage("memory", self._peak_rss),
        ]

    def _cold_start(self) -> Iterator[Taken]:
        figure = Figure(name="cold_start", unit="s", better=Better.LOWER)

        def probe(subject: Subject, key: str) -> float:
            subject.close()
            self.ready[subject.name] = subject.start()
            subject.generate([self.workload.prompt(key, self.workload.short_prompt)], 1)
            return subject.seconds_since_start()

        yield Taken(figure, self.lineup.measure(figure.name, probe), goals=COLD_START_GOALS)

    def _decode_and_bandwidth(self, length: int) -> Iterator[Taken]:
        figure = Figure(name=f"decode_b1_p{length}", unit="tok/s", better=Better.HIGHER, goal=_ratio(1.0))
        bandwidths: list[Sample] = []

        def read_bandwidth() -> None:
            """In the same minute as each repeat: as the rate at which weights could be streamed."""
            bandwidths.append(Sample(self._read_bandwidth() * 1e9 / self._footprint.streamed))

        rates = self.lineup.measure(figure.name, probes.decode_rate(self.workload, length), read_bandwidth)
        yield Taken(figure, rates)
        roofline = Measurement(tuple(bandwidths))
        share = Figure(name="bandwidth_share_b1", unit="%", better=Better.HIGHER, goal=Goal(Of.VALUE, 85))
        yield Taken(share, {name: rate.share_of(roofline) for name, rate in rates.items()})

    def _aggregate(self, concurrency: int) -> Iterator[Taken]:
        bound = AGGREGATE_GOALS.get(concurrency)
        for taken in self.aggregate(concurrency, None if bound is None else _ratio(bound)):
            yield taken
            if concurrency == self.workload.concurrencies[-1]:
                yield _triton_share(concurrency, taken.measured)

    def _prefix(self) -> Iterator[Taken]:
        count, length = self.workload.num_prefix_sharers, self.workload.long_prompt
        shared = Figure(name=f"prefix_shared_c{count}_p{length}", unit="ms", better=Better.LOWER)
        distinct = Figure(name=f"prefix_distinct_c{count}_p{length}", unit="ms", better=Better.LOWER)
        with_prefix = self.lineup.measure(shared.name, probes.shared_prefix(self.workload))
        yield Taken(shared, with_prefix)
        without = self.lineup.measure(distinct.name, probes.distinct_prompts(self.workload))
        yield Taken(distinct, without)
        share = Figure(name="prefix_share_of_cold", unit="%", better=Better.LOWER, goal=Goal(Of.VALUE, 5))
        yield Taken(share, {name: with_prefix[name].share_of(cold) for name, cold in without.items()})

    def _host_overhead(self) -> Iterator[Taken]:
        concurrency = self.workload.concurrencies[-1]
        overhead = Figure(name=f"host_overhead_c{concurrency}", unit="%", better=Better.LOWER, goal=Goal(Of.VALUE, 5))
        sampling = Figure(name=f"sampling_share_c{concurrency}", unit="%", better=Better.LOWER)
        with self.lineup.alone(self._step_probe) as alone:
            alone.each(lambda subject: probes.start_and_warm_up(self.workload, subject))
            for figure, probe in (
                (overhead, probes.host_overhead(self.workload, concurrency)),
                (sampling, probes.sampling_share(self.workload, concurrency)),
            ):
                measured = alone.measure(figure.name, probe).get(self._step_probe.name)
                yield Taken(figure, {} if measured is None else {EXECUTOR: measured}, ours=(EXECUTOR,))

    def _peak_rss(self) -> Iterator[Taken]:
        return self.peak_rss(dict.fromkeys(self.contests, self._footprint.rss_goal))


def _triton_share(concurrency: int, rates: Mapping[str, Measurement]) -> Taken:
    figure = Figure(name=f"triton_share_c{concurrency}", unit="%", better=Better.HIGHER, goal=Goal(Of.VALUE, 93))
    has_both = EXECUTOR in rates and TRITON in rates
    return Taken(figure, {TRITON: rates[TRITON].share_of(rates[EXECUTOR])} if has_both else {}, ours=(TRITON,))


def _ratio(bound: float) -> Goal:
    return Goal(Of.RATIO, bound)
