"""What becomes of adapters, under `trierarch_`, and the one gauge that gateways choose a server by.

`vllm:lora_requests_info` is vLLM's, which the endpoint picker of the Gateway API reads: its labels say which adapters run
and which wait, its value is when that was so, in seconds of Unix time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from trierarch.builder.manifest import Lora
from trierarch.python_backend.adapters.stats import AdapterStats
from trierarch.python_backend.triton.metric_registry import MetricRegistry
from trierarch.python_backend.triton.snapshot_metrics import FollowedCounters, FollowedGauges

LORA_INFO: Final = "vllm:lora_requests_info"
MAX_WAITING: Final = 64
"""Names of waiting adapters that are shown."""
LOAD_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_GAUGES: Final[Mapping[tuple[str, str, str | None], Callable[[AdapterStats], float]]] = {
    ("trierarch_adapters", "Adapters by how far they are", "registered"): lambda stats: stats.num_registered,
    ("trierarch_adapters", "Adapters by how far they are", "loaded"): lambda stats: stats.num_loaded,
    ("trierarch_adapters", "Adapters by how far they are", "active"): lambda stats: stats.num_active,
    ("trierarch_adapters_waiting", "Adapters that requests wait for", None): lambda stats: len(stats.waiting),
    ("trierarch_adapter_bytes", "Memory of loaded adapters", None): lambda stats: stats.loaded_bytes,
}
"""(name, description, status) -> the value."""
_COUNTERS: Final[Mapping[tuple[str, str], Callable[[AdapterStats], int]]] = {
    ("trierarch_adapter_loads_total", "Adapters loaded into memory"): lambda stats: stats.num_loads,
    ("trierarch_adapter_load_failures_total", "Adapters that could not be loaded"): lambda stats: (
        stats.num_load_failures
    ),
    ("trierarch_adapter_evictions_total", "Loaded adapters that gave way to others"): lambda stats: stats.num_evictions,
}


class AdapterMetrics:
    """The metrics of one engine that takes adapters."""

    def __init__(self, registry: MetricRegistry, labels: Mapping[str, str], lora: Lora) -> None:
        """Declare them all; `labels` go to each but LORA_INFO."""
        self._max_adapters = lora.max_adapters
        self._gauges = FollowedGauges(
            (registry.gauge(name, text, {**labels, **({} if status is None else {"status": status})}), read)
            for (name, text, status), read in _GAUGES.items()
        )
        self._counters = FollowedCounters(
            (registry.counter(name, text, labels), read) for (name, text), read in _COUNTERS.items()
        )
        self._load_seconds = registry.histogram(
            "trierarch_adapter_load_seconds", "To read an adapter and lay it out in memory", labels, LOAD_BUCKETS
        )
        self._num_observed = 0
        self._info = registry.info(LORA_INFO, "Running stats on lora requests.")
        self._told: tuple[str, str, int] | None = None

    def publish(self, stats: AdapterStats) -> None:
        """Show a snapshot; older ones than the last are not given."""
        self._gauges.publish(stats)
        self._counters.publish(stats)
        num_new = stats.num_loads - self._num_observed
        for seconds in stats.load_durations[-num_new:] if num_new else ():
            self._load_seconds.observe(seconds)
        self._num_observed = stats.num_loads
        self._publish_names(stats)

    def _publish_names(self, stats: AdapterStats) -> None:
        names = ",".join(stats.running), ",".join(stats.waiting[:MAX_WAITING])
        now = int(time.time())
        if (*names, now) == self._told:
            return
        running, waiting = names
        self._info.show(
            {
                "max_lora": str(self._max_adapters),
                "running_lora_adapters": running,
                "waiting_lora_adapters": waiting,
            },
            float(now),
        )
        self._told = (running, waiting, now)
