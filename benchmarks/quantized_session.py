"""QuantizedSession: the figures of the benchmark `quantized`, in the order they are taken, with their goals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from trierarch.benchmarks.engine import Footprint
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.measurement import Measurement
from trierarch.benchmarks.report import Better, Figure, Goal, Of
from trierarch.benchmarks.session import Contests, Session, Stage, Taken
from trierarch.benchmarks.workload import Workload
from trierarch.builder.config import BuildConfig
from trierarch.builder.manifest import Accuracy

DECODE_GOAL: Final = Goal(Of.RATIO, 1.2)
PERPLEXITY_GOAL: Final = Goal(Of.VALUE, 100 * BuildConfig.model_fields["max_perplexity_increase"].default)
"""What a build allows."""


class QuantizedSession(Session):
    """Takes the figures from a lineup, once."""

    def __init__(
        self,
        lineup: Lineup,
        workload: Workload,
        contests: Contests,
        footprints: Mapping[str, Footprint],
        sizes: Mapping[str, int],
        accuracies: Mapping[str, Accuracy],
    ) -> None:
        """Nothing runs before `figures`. By subject, of ours: footprints, and accuracies where they were measured; of
        everybody who has some: bytes of the model's files."""
        super().__init__(lineup, workload, contests)
        self._footprints = footprints
        self._sizes = sizes
        self._accuracies = accuracies

    def stages(self) -> list[Stage]:
        """See Session.stages. Aggregates have no goal and take longest: one repeat."""
        short, long = self.workload.short_prompt, self.workload.long_prompt
        return [
            Stage("start", self.start),
            Stage("warm-up", self.prepare),
            Stage(f"decode, {short}-token prompt", partial(self.decode, short, DECODE_GOAL)),
            Stage(f"decode, {long}-token prompt", partial(self.decode, long, DECODE_GOAL)),
            Stage(f"first token, {long}-token prompt", partial(self.first_token, long)),
            *(
                Stage(f"{concurrency} streams", partial(self.aggregate, concurrency, num_repeats=1))
                for concurrency in self.workload.concurrencies
            ),
            Stage("memory, size, accuracy", self._costs),
        ]

    def _costs(self) -> Iterator[Taken]:
        yield from self.peak_rss({name: footprint.rss_goal for name, footprint in self._footprints.items()})
        size = Figure(name="model_size", unit="MB", better=Better.LOWER)
        measured = {name: Measurement.of([value / 1e6]) for name, value in self._sizes.items()}
        yield Taken(size, measured, ours=tuple(name for name in self.contests if name in measured))
        yield from self._accuracy()

    def _accuracy(self) -> Iterator[Taken]:
        """Of the builds; rivals do not tell."""
        increase = Figure(name="perplexity_increase", unit="%", better=Better.LOWER, goal=PERPLEXITY_GOAL)
        agreement = Figure(name="greedy_agreement", unit="%", better=Better.HIGHER)
        divergence = Figure(name="mean_kl", unit="nats", better=Better.LOWER)
        reads: tuple[tuple[Figure, Callable[[Accuracy], float]], ...] = (
            (increase, lambda accuracy: 100 * accuracy.perplexity_increase),
            (agreement, lambda accuracy: 100 * accuracy.greedy_agreement),
            (divergence, lambda accuracy: accuracy.mean_kl),
        )
        for figure, read in reads:
            measured = {name: Measurement.of([read(accuracy)]) for name, accuracy in self._accuracies.items()}
            yield Taken(figure, measured, ours=tuple(measured))
