"""Metrics of the tiers behind the KV cache, against a registry that records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from support.triton_metrics import RecordingRegistry
from trierarch.python_backend.executors.offload.config import OffloadConfig
from trierarch.python_backend.kv.offload_stats import OffloadStats, TierStats
from trierarch.python_backend.triton.metrics import EngineMetrics
from trierarch.python_backend.triton.offload_metrics import OffloadMetrics

LABELS = {"model": "tensorrt_llm", "version": "1"}
TIER = TierStats(num_blocks=3, num_bytes=300, max_blocks=8, num_hits=5, num_stored=7, num_evictions=2, num_failures=1)
STATS = OffloadStats(host=TIER, disk=replace(TIER, num_blocks=4, num_hits=6), num_recalls=9, num_dropped=0)


def test_gauges_and_counters_by_tier() -> None:
    registry = RecordingRegistry()
    metrics = OffloadMetrics(registry, LABELS, has_disk=True)
    metrics.publish(STATS)
    metrics.publish(STATS)
    metrics.publish(replace(STATS, host=replace(TIER, num_blocks=2, num_hits=8), num_recalls=10))
    assert registry.values("trierarch_kv_tier_blocks", tier="host", **LABELS) == [3, 2]
    assert registry.values("trierarch_kv_tier_blocks", tier="disk", **LABELS) == [4]
    assert registry.values("trierarch_kv_tier_bytes", tier="host", **LABELS) == [300]
    assert registry.values("trierarch_kv_tier_hits_total", tier="host", **LABELS) == [5, 3]
    assert registry.values("trierarch_kv_tier_hits_total", tier="disk", **LABELS) == [6]
    assert registry.values("trierarch_kv_tier_stored_total", tier="host", **LABELS) == [7]
    assert registry.values("trierarch_kv_tier_evictions_total", tier="host", **LABELS) == [2]
    assert registry.values("trierarch_kv_tier_failures_total", tier="disk", **LABELS) == [1]
    assert registry.values("trierarch_kv_recalls_total", **LABELS) == [9, 1]
    assert registry.values("trierarch_kv_dropped_total", **LABELS) == []


def test_only_tiers_that_there_are_have_metrics() -> None:
    for config, tiers in (
        (OffloadConfig(), set()),
        (OffloadConfig(host_bytes=1), {"host"}),
        (OffloadConfig(host_bytes=1, disk_directory=Path("kept")), {"host", "disk"}),
    ):
        registry = RecordingRegistry()
        EngineMetrics(registry, "tensorrt_llm", "1", offload=config)
        assert {dict(labels)["tier"] for _, labels in registry.cells if "tier" in dict(labels)} == tiers
