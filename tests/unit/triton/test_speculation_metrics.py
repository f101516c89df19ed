"""Counters of speculation, against a registry that records."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.triton_metrics import RecordingRegistry
from trierarch.builder.manifest import DrafterKind, Speculation
from trierarch.python_backend.executors.executor import ExecutorStats
from trierarch.python_backend.speculation.stats import DrafterStats, SpeculationStats
from trierarch.python_backend.triton.metrics import EngineMetrics

BUILT = Speculation(drafters=(DrafterKind.PROMPT_LOOKUP, DrafterKind.SUFFIX), max_draft_tokens=3)


def drafter(kind: DrafterKind | None, *counts: int) -> DrafterStats:
    num_drafts, num_draft_tokens, num_accepted_tokens = counts
    return DrafterStats(
        kind=kind, num_drafts=num_drafts, num_draft_tokens=num_draft_tokens, num_accepted_tokens=num_accepted_tokens
    )


STATS = SpeculationStats(
    drafters=(drafter(DrafterKind.SUFFIX, 5, 12, 7), drafter(None, 1, 2, 2)),
    drafted_by_position=(6, 5, 3),
    accepted_by_position=(5, 3, 1),
    drafts_by_length=(9, 1, 2, 3),
    num_steps=20,
    num_steps_speculated=6,
)


def published(*snapshots: SpeculationStats | None, built: Speculation | None = BUILT) -> RecordingRegistry:
    registry = RecordingRegistry()
    metrics = EngineMetrics(registry, "tensorrt_llm", "1", built)
    for snapshot in snapshots:
        metrics.publish(replace(EXECUTOR_STATS, speculation=snapshot))
    return registry


EXECUTOR_STATS = ExecutorStats(
    num_active_requests=1,
    num_scheduled_requests=1,
    num_context_requests=0,
    num_context_tokens=0,
    num_paused_requests=0,
    max_requests=64,
    num_steps=20,
    max_blocks=100,
    used_blocks=1,
    free_blocks=99,
    reused_blocks=0,
    tokens_per_block=16,
    used_slots=16,
    memory_bytes=1,
)


def values(registry: RecordingRegistry, family: str, label: str) -> dict[str, list[float]]:
    """Value of the label -> the increments of that counter."""
    return {
        dict(labels)[label]: cell.values
        for (name, labels), cell in registry.cells.items()
        if name == f"trierarch_{family}"
    }


def test_every_counter_is_there_before_the_first_draft() -> None:
    registry = published()
    assert values(registry, "drafts_total", "drafter") == {"prompt_lookup": [], "suffix": [], "client": []}
    assert values(registry, "draft_tokens_by_position_total", "position").keys() == {"0", "1", "2"}
    assert values(registry, "drafts_by_length_total", "length").keys() == {"0", "1", "2", "3"}
    assert all({"model", "version"} <= dict(labels).keys() for _, labels in registry.cells)


def test_an_engine_that_does_not_guess_counts_the_drafts_of_its_clients() -> None:
    registry = published(STATS, built=None)
    assert values(registry, "drafts_total", "drafter") == {"client": [1]}
    assert values(registry, "draft_tokens_by_position_total", "position")["0"] == [6]
    assert values(registry, "steps_total", "step_type") == {"speculated": [6], "plain": [14]}


def test_counters_follow_the_executors_counts() -> None:
    later = replace(STATS, drafters=(STATS.drafters[0], drafter(None, 3, 10, 4)), num_steps=25)
    registry = published(None, STATS, STATS, later)
    assert values(registry, "drafts_total", "drafter") == {"prompt_lookup": [], "suffix": [5], "client": [1, 2]}
    assert values(registry, "draft_tokens_total", "drafter") == {"prompt_lookup": [], "suffix": [12], "client": [2, 8]}
    assert values(registry, "accepted_draft_tokens_total", "drafter")["client"] == [2, 2]
    assert values(registry, "steps_total", "step_type") == {"speculated": [6], "plain": [14, 5]}


def test_acceptance_by_position_and_drafts_by_length() -> None:
    registry = published(STATS)
    assert values(registry, "draft_tokens_by_position_total", "position") == {"0": [6], "1": [5], "2": [3]}
    assert values(registry, "accepted_draft_tokens_by_position_total", "position") == {"0": [5], "1": [3], "2": [1]}
    assert values(registry, "drafts_by_length_total", "length") == {"0": [9], "1": [1], "2": [2], "3": [3]}


@pytest.mark.parametrize("num_tokens", [16, 40])
def test_labels_are_bounded_and_the_last_stands_for_the_rest(num_tokens: int) -> None:
    ones = (1,) * num_tokens
    stats = replace(STATS, drafted_by_position=ones, accepted_by_position=ones, drafts_by_length=(1, *ones))
    registry = published(stats, built=BUILT.model_copy(update={"max_draft_tokens": num_tokens}))
    by_position = values(registry, "draft_tokens_by_position_total", "position")
    by_length = values(registry, "drafts_by_length_total", "length")
    assert by_position == {str(i): [1 if i < 15 else num_tokens - 15] for i in range(16)}
    assert by_length == {str(n): [1 if n < 16 else num_tokens - 15] for n in range(17)}
