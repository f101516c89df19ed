"""What was guessed ahead, as counters under `trierarch_`.

They follow the executor's own counts from snapshot to snapshot. The lengths of drafts are counters too, one a length, where
a histogram would do: Triton's takes one value a call of some 20 µs, and there is one for each sequence of each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from trierarch.builder.manifest import DEFAULT_MAX_DRAFT_TOKENS, DrafterKind, Speculation
from trierarch.python_backend.speculation.stats import DrafterStats, SpeculationStats
from trierarch.python_backend.triton.metric_registry import MetricRegistry
from trierarch.python_backend.triton.snapshot_metrics import CounterFamily, FollowedCounters

MAX_LABELS: Final = 16
"""Positions and lengths told apart; the last stands for all from there on."""
CLIENT: Final = "client"
"""Label of drafts that came with a request."""

Read = Callable[[SpeculationStats], int]


class SpeculationMetrics:
    """The counters of one model."""

    def __init__(self, registry: MetricRegistry, labels: Mapping[str, str], built: Speculation | None) -> None:
        """Declare every counter that the engine, `built` so, can have; `labels` go to each.

        One that guesses nothing by itself still verifies the drafts that come with requests.
        """
        self._counters = FollowedCounters(
            counter for family in families(*_shape(built)) for counter in family.declared(registry, labels)
        )

    def publish(self, stats: SpeculationStats) -> None:
        """Show a snapshot; older ones than the last are not given."""
        self._counters.publish(stats)


def _shape(built: Speculation | None) -> tuple[tuple[DrafterKind, ...], int]:
    return ((), DEFAULT_MAX_DRAFT_TOKENS) if built is None else (built.drafters, built.max_draft_tokens)


def families(kinds: tuple[DrafterKind, ...], max_draft_tokens: int) -> tuple[CounterFamily[SpeculationStats], ...]:
    """The counters of an engine that has drafters of these kinds and follows them so far."""
    return (
        CounterFamily(
            "trierarch_drafts_total",
            "Drafts verified",
            "drafter",
            dict(_by_drafter(kinds, lambda drafter: drafter.num_drafts)),
        ),
        CounterFamily(
            "trierarch_draft_tokens_total",
            "Draft tokens verified",
            "drafter",
            dict(_by_drafter(kinds, lambda drafter: drafter.num_draft_tokens)),
        ),
        CounterFamily(
            "trierarch_accepted_draft_tokens_total",
            "Draft tokens that the model drew too",
            "drafter",
            dict(_by_drafter(kinds, lambda drafter: drafter.num_accepted_tokens)),
        ),
        CounterFamily(
            "trierarch_draft_tokens_by_position_total",
            f"Draft tokens verified, by their place in the draft; {MAX_LABELS - 1} is that place and all behind it",
            "position",
            dict(_by_index(range(max_draft_tokens), lambda stats: stats.drafted_by_position)),
        ),
        CounterFamily(
            "trierarch_accepted_draft_tokens_by_position_total",
            f"Draft tokens that the model drew too, by their place in the draft; {MAX_LABELS - 1} is that place and all behind",
            "position",
            dict(_by_index(range(max_draft_tokens), lambda stats: stats.accepted_by_position)),
        ),
        CounterFamily(
            "trierarch_drafts_by_length_total",
            f"Sequences of steps that decode, by the draft tokens verified; 0 is without a draft, {MAX_LABELS} that and more",
            "length",
            dict(_by_index(range(max_draft_tokens + 1), lambda stats: stats.drafts_by_length, MAX_LABELS + 1)),
        ),
        CounterFamily(
            "trierarch_steps_total",
            "Steps of the engine: those that verified a draft of any sequence, and the others",
            "step_type",
            {
                "speculated": lambda stats: stats.num_steps_speculated,
                "plain": lambda stats: stats.num_steps - stats.num_steps_speculated,
            },
        ),
    )


def _by_drafter(kinds: tuple[DrafterKind, ...], count: Callable[[DrafterStats], int]) -> Iterator[tuple[str, Read]]:
    def read_of(kind: DrafterKind | None) -> Read:
        return lambda stats: sum(count(drafter) for drafter in stats.drafters if drafter.kind is kind)

    yield from ((kind.value, read_of(kind)) for kind in kinds)
    yield CLIENT, read_of(None)


def _by_index(
    indices: Iterable[int], counts: Callable[[SpeculationStats], tuple[int, ...]], max_labels: int = MAX_LABELS
) -> Iterator[tuple[str, Read]]:
    def read_of(index: int) -> Read:
        end = index + 1 if index < max_labels - 1 else None
        return lambda stats: sum(counts(stats)[index:end])

    yield from ((str(index), read_of(index)) for index in indices if index < max_labels)
