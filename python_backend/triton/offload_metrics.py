"""What the tiers behind the KV cache hold and did, under `trierarch_kv_tier_`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from trierarch.python_backend.kv.copies import Tier
from trierarch.python_backend.kv.offload_stats import OffloadStats, TierStats
from trierarch.python_backend.triton.metric_registry import MetricRegistry
from trierarch.python_backend.triton.snapshot_metrics import FollowedCounters, FollowedGauges

_GAUGES: Final[Mapping[tuple[str, str], Callable[[TierStats], int]]] = {
    ("trierarch_kv_tier_blocks", "KV blocks held in a tier behind the KV cache"): lambda stats: stats.num_blocks,
    ("trierarch_kv_tier_bytes", "What they take"): lambda stats: stats.num_bytes,
}
"""(name, description) -> the value of each tier."""
_COUNTERS: Final[Mapping[tuple[str, str], Callable[[TierStats], int]]] = {
    ("trierarch_kv_tier_hits_total", "KV blocks that came back from a tier"): lambda stats: stats.num_hits,
    ("trierarch_kv_tier_stored_total", "KV blocks that were copied to a tier"): lambda stats: stats.num_stored,
    ("trierarch_kv_tier_evictions_total", "KV blocks that gave way to others in a tier"): lambda stats: (
        stats.num_evictions
    ),
    ("trierarch_kv_tier_failures_total", "Copies from and to a tier that failed"): lambda stats: stats.num_failures,
}
_OF_ALL: Final[Mapping[tuple[str, str], Callable[[OffloadStats], int]]] = {
    ("trierarch_kv_recalls_total", "Times that a sequence waited for KV blocks to come back"): lambda stats: (
        stats.num_recalls
    ),
    (
        "trierarch_kv_dropped_total",
        "KV blocks that left and found no slot, since all were being copied",
    ): lambda stats: stats.num_dropped,
}


class OffloadMetrics:
    """The metrics of one engine that has tiers."""

    def __init__(self, registry: MetricRegistry, labels: Mapping[str, str], has_disk: bool) -> None:
        """Declare them all; `labels` go to each."""
        tiers = tuple(Tier) if has_disk else (Tier.HOST,)
        self._gauges = FollowedGauges(
            (registry.gauge(name, text, {**labels, "tier": tier}), _of(tier, read))
            for (name, text), read in _GAUGES.items()
            for tier in tiers
        )
        of_tiers = (
            (registry.counter(name, text, {**labels, "tier": tier}), _of(tier, read))
            for (name, text), read in _COUNTERS.items()
            for tier in tiers
        )
        of_all = ((registry.counter(name, text, labels), read) for (name, text), read in _OF_ALL.items())
        self._counters = FollowedCounters([*of_tiers, *of_all])

    def publish(self, stats: OffloadStats) -> None:
        """Show a snapshot; older ones than the last are not given."""
        self._gauges.publish(stats)
        self._counters.publish(stats)


def _of(tier: Tier, read: Callable[[TierStats], int]) -> Callable[[OffloadStats], int]:
    """What `read` says of one tier; 0 where there is none."""

    def value(stats: OffloadStats) -> int:
        its = stats.host if tier is Tier.HOST else stats.disk
        return 0 if its is None else read(its)

    return value
