"""ScalingSession: rates of decoding against the number of streams and against the length of context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from trierarch.benchmarks import probes
from trierarch.benchmarks.ceiling import Ceiling
from trierarch.benchmarks.lineup import Lineup, Probe
from trierarch.benchmarks.measurement import Measurement
from trierarch.benchmarks.report import Better, Figure
from trierarch.benchmarks.session import Contests, Session, Stage, Taken
from trierarch.benchmarks.workload import Workload

ROOFLINE: Final = "roofline"
"""Stands in a row where a rival would: what the machine allowed in the same minute."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve."""

    num_sequences: int
    prompt_length: int
    rates: Mapping[str, float]
    """Subject -> tokens a second."""
    highest: float
    """The roofline at the most GB/s that were read in the run so far."""
    lowest: float
    """And at the least."""


class ScalingSession(Session):
    """Takes the figures from a lineup, once."""

    def __init__(
        self,
        lineup: Lineup,
        workload: Workload,
        contests: Contests,
        contexts: tuple[int, ...],
        ceiling: Ceiling,
        gflop_per_s: float,
        read_bandwidth: Callable[[], float],
    ) -> None:
        """Nothing runs before `figures`; `read_bandwidth` measures the machine's GB/s now."""
        super().__init__(lineup, workload, {ours: (ROOFLINE, *rivals) for ours, rivals in contests.items()})
        self._contexts = contexts
        self._ceiling = ceiling
        self._gflop_per_s = gflop_per_s
        self._read_bandwidth = read_bandwidth
        self._bandwidths: list[float] = []
        self._taken: list[tuple[int, int, dict[str, float]]] = []

    def stages(self) -> list[Stage]:
        """See Session.stages."""
        return [
            Stage("start", self.start),
            Stage("warm-up", self.prepare),
            *(Stage(f"{count} streams", partial(self._streams, count)) for count in self.workload.concurrencies),
            *(Stage(f"context of {length}", partial(self._context, length)) for length in self._contexts),
        ]

    def points(self) -> tuple[list[Point], list[Point]]:
        """What was measured so far: against streams, and against context."""
        points = [
            Point(count, length, rates, self._allowed(count, length, max), self._allowed(count, length, min))
            for count, length, rates in self._taken
        ]
        num_against_streams = len(self.workload.concurrencies)
        return points[:num_against_streams], points[num_against_streams:]

    def _streams(self, count: int) -> Iterator[Taken]:
        length = self.workload.short_prompt
        return self._decode(count, length, probes.decode_rate(self.workload, length, count))

    def _context(self, length: int) -> Iterator[Taken]:
        return self._decode(1, length, probes.cached_decode_rate(self.workload, length))

    def _decode(self, count: int, length: int, probe: Probe) -> Iterator[Taken]:
        figure = Figure(name=f"decode_c{count}_p{length}", unit="tok/s", better=Better.HIGHER)
        self._bandwidths.append(self._read_bandwidth())
        measured = self.lineup.measure(figure.name, probe)
        self._taken.append((count, length, {name: rate.median for name, rate in measured.items()}))
        allowed = self._ceiling_at(count, length, self._bandwidths[-1])
        yield Taken(figure, measured | {ROOFLINE: Measurement.of([allowed])})

    def _allowed(self, count: int, length: int, choose: Callable[[list[float]], float]) -> float:
        return self._ceiling_at(count, length, choose(self._bandwidths))

    def _ceiling_at(self, count: int, length: int, bandwidth: float) -> float:
        context = length + self.workload.num_output_tokens / 2  # the mean over the tokens decoded
        return self._ceiling.tokens_per_second(count, context, bandwidth, self._gflop_per_s)
