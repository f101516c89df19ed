"""Metrics of adapters, against a registry that records."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from support.triton_metrics import RecordingRegistry
from trierarch.builder.manifest import Lora
from trierarch.python_backend.adapters.stats import AdapterStats
from trierarch.python_backend.triton.adapter_metrics import LORA_INFO, MAX_WAITING, AdapterMetrics
from trierarch.python_backend.triton.metrics import EngineMetrics

LABELS = {"model": "tensorrt_llm", "version": "1"}
STATS = AdapterStats(
    max_adapters=2,
    num_registered=5,
    num_loaded=3,
    num_active=1,
    loaded_bytes=1000,
    running=("a",),
    waiting=("b", "c"),
    num_loads=4,
    num_load_failures=1,
    num_evictions=2,
    load_seconds=0.4,
    load_durations=(0.1, 0.2, 0.05, 0.05),
)


def published(*snapshots: AdapterStats) -> RecordingRegistry:
    registry = RecordingRegistry()
    metrics = AdapterMetrics(registry, LABELS, Lora(max_adapters=2))
    for snapshot in snapshots:
        metrics.publish(snapshot)
    return registry


def test_gauges_counters_and_durations() -> None:
    later = replace(
        STATS, num_loaded=2, num_loads=6, num_evictions=3, load_durations=(0.1, 0.2, 0.05, 0.05, 0.3, 0.4), waiting=()
    )
    registry = published(STATS, STATS, later)
    assert registry.values("trierarch_adapters", status="registered", **LABELS) == [5]
    assert registry.values("trierarch_adapters", status="loaded", **LABELS) == [3, 2]
    assert registry.values("trierarch_adapters", status="active", **LABELS) == [1]
    assert registry.values("trierarch_adapters_waiting", **LABELS) == [2, 0]
    assert registry.values("trierarch_adapter_bytes", **LABELS) == [1000]
    assert registry.values("trierarch_adapter_loads_total", **LABELS) == [4, 2]
    assert registry.values("trierarch_adapter_load_failures_total", **LABELS) == [1]
    assert registry.values("trierarch_adapter_evictions_total", **LABELS) == [2, 1]
    assert registry.values("trierarch_adapter_load_seconds", **LABELS) == [0.1, 0.2, 0.05, 0.05, 0.3, 0.4]


def test_more_loads_than_durations_are_kept() -> None:
    """What fell out between two looks is not made up."""
    registry = published(replace(STATS, num_loads=1000, load_durations=(0.1,) * 64))
    assert registry.values("trierarch_adapter_load_seconds", **LABELS) == [0.1] * 64


def test_gateways_read_who_runs_and_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.7
    monkeypatch.setattr(time, "time", lambda: now)
    registry = RecordingRegistry()
    metrics = AdapterMetrics(registry, LABELS, Lora(max_adapters=2))
    metrics.publish(STATS)
    metrics.publish(STATS)
    metrics.publish(replace(STATS, running=("a", "b"), waiting=()))
    now += 1
    metrics.publish(replace(STATS, running=("a", "b"), waiting=()))
    both = {"max_lora": "2", "running_lora_adapters": "a,b", "waiting_lora_adapters": ""}
    assert registry.infos[LORA_INFO].shown == [
        ({"max_lora": "2", "running_lora_adapters": "a", "waiting_lora_adapters": "b,c"}, 1_000_000.0),
        (both, 1_000_000.0),
        (both, 1_000_001.0),
    ]


def test_the_names_are_bounded() -> None:
    registry = published(replace(STATS, waiting=tuple(f"w{number:04}" for number in range(1000))))
    ((labels, _),) = registry.infos[LORA_INFO].shown
    assert labels["waiting_lora_adapters"].count(",") == MAX_WAITING - 1


def test_an_engine_that_takes_none_has_none() -> None:
    registry = RecordingRegistry()
    EngineMetrics(registry, "tensorrt_llm", "1")
    assert not registry.infos
    assert not any("adapter" in name for name, _ in registry.cells)
