"""What the models tell Triton's metrics port: TensorRT-LLM's families, and ours under `trierarch_`.

Gauges are read from the executor's snapshot every `stats_check_period_ms`, and so is what is told of speculation
(`speculation_metrics`), of adapters (`adapter_metrics`) and of tiers (`offload_metrics`), by `snapshot_metrics`; histograms
take one value a sequence, or one a token for the inter-token latency.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from trierarch.builder.manifest import Lora, Speculation
from trierarch.python_backend.executors.executor import ExecutorStats
from trierarch.python_backend.executors.offload.config import NO_OFFLOAD, OffloadConfig
from trierarch.python_backend.request import Usage
from trierarch.python_backend.triton.adapter_metrics import AdapterMetrics
from trierarch.python_backend.triton.metric_registry import MetricRegistry
from trierarch.python_backend.triton.offload_metrics import OffloadMetrics
from trierarch.python_backend.triton.snapshot_metrics import CounterFamily, FollowedCounters, FollowedGauges
from trierarch.python_backend.triton.speculation_metrics import SpeculationMetrics

TOKEN_BUCKETS: Final = (10.0, 50.0, 100.0, 500.0, 1000.0)
SECONDS_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class GaugeFamily:
    """Gauges of one name, told apart by one label."""

    name: str
    description: str
    label: str
    values: Mapping[str, Callable[[ExecutorStats], float]]
    """Value of the label -> what to show."""


@dataclass(frozen=True, slots=True)
class HistogramFamily:
    """A histogram over finished sequences."""

    name: str
    description: str
    labels: Mapping[str, str]
    buckets: tuple[float, ...]
    value: Callable[[Usage], float]


def _waste_slots(stats: ExecutorStats) -> float:
    return stats.used_blocks * stats.tokens_per_block - stats.used_slots


GAUGES: Final = (
    GaugeFamily(
        "nv_trt_llm_request_metrics",
        "TRT LLM request metrics",
        "request_type",
        {
            "active": lambda stats: stats.num_active_requests,
            "max": lambda stats: stats.max_requests,
            "scheduled": lambda stats: stats.num_scheduled_requests,
            "context": lambda stats: stats.num_context_requests,
            "waiting": lambda stats: max(0, stats.num_active_requests - stats.num_scheduled_requests),
        },
    ),
    GaugeFamily(
        "nv_trt_llm_runtime_memory_metrics",
        "TRT LLM runtime memory metrics",
        "memory_type",
        {
            "cpu": lambda stats: stats.memory_bytes,
            "gpu": lambda stats: stats.gpu_memory_bytes,
            "pinned": lambda stats: stats.pinned_memory_bytes,
        },
    ),
    GaugeFamily(
        "nv_trt_llm_kv_cache_block_metrics",
        "TRT LLM KV cache block metrics",
        "kv_cache_block_type",
        {
            "max": lambda stats: stats.max_blocks,
            "free": lambda stats: stats.free_blocks,
            "used": lambda stats: stats.used_blocks,
            "reused": lambda stats: stats.reused_blocks,
            "tokens_per": lambda stats: stats.tokens_per_block,
            "fraction": lambda stats: stats.used_blocks / max(1, stats.max_blocks),
        },
    ),
    GaugeFamily(
        "trierarch_prefix_cache_blocks",
        "KV blocks that hold a prefix",
        "state",
        {"cached": lambda stats: stats.cached_blocks},
    ),
    GaugeFamily(
        "nv_trt_llm_inflight_batcher_metrics",
        "TRT LLM inflight_batcher-specific metrics",
        "inflight_batcher_specific_metric",
        {
            "micro_batch_id": lambda stats: stats.micro_batch_id,
            "generation_requests": lambda stats: stats.num_scheduled_requests - stats.num_context_requests,
            "total_context_tokens": lambda stats: stats.num_context_tokens,
            "paused_requests": lambda stats: stats.num_paused_requests,
        },
    ),
    GaugeFamily(
        "nv_trt_llm_general_metrics",
        "General TRT LLM metrics",
        "general_type",
        {"iteration_counter": lambda stats: stats.num_steps, "timestamp": lambda stats: int(time.time())},
    ),
    GaugeFamily(
        "trierarch_kv_cache_slots",
        "KV slots of allocated blocks: holding a token, or waste",
        "slot_type",
        {"used": lambda stats: stats.used_slots, "waste": _waste_slots},
    ),
)

COUNTERS: Final[tuple[CounterFamily[ExecutorStats], ...]] = (
    CounterFamily(
        "trierarch_prefix_cache_blocks_total",
        "KV blocks that came to be kept for prefixes, and that gave way to others",
        "change",
        {"stored": lambda stats: stats.stored_blocks, "removed": lambda stats: stats.removed_blocks},
    ),
    CounterFamily(
        "trierarch_kv_events_total",
        "Events of the KV cache that nobody read in time",
        "event",
        {"lost": lambda stats: stats.lost_kv_events},
    ),
)

HISTOGRAMS: Final = (
    HistogramFamily(
        "nv_llm_input_token_len",
        "TRT LLM response metrics",
        {"response_metric_type": "total_input_tokens"},
        TOKEN_BUCKETS,
        lambda usage: usage.num_prompt_tokens,
    ),
    HistogramFamily(
        "nv_llm_output_token_len",
        "TRT LLM response metrics",
        {"response_metric_type": "total_output_tokens"},
        TOKEN_BUCKETS,
        lambda usage: usage.num_output_tokens,
    ),
    HistogramFamily(
        "trierarch_queue_time_seconds",
        "From a request's arrival to the first step that computed it",
        {},
        SECONDS_BUCKETS,
        lambda usage: (usage.first_scheduled_ns - usage.arrival_ns) / 1e9,
    ),
    HistogramFamily(
        "trierarch_time_to_first_token_seconds",
        "From a request's arrival to its first output token",
        {},
        SECONDS_BUCKETS,
        lambda usage: (usage.first_token_ns - usage.arrival_ns) / 1e9,
    ),
)
INTER_TOKEN_LATENCY: Final = "trierarch_inter_token_latency_seconds"


class EngineMetrics:
    """The metrics of one model that holds an executor."""

    def __init__(
        self,
        registry: MetricRegistry,
        model: str,
        version: str,
        speculation: Speculation | None = None,
        lora: Lora | None = None,
        offload: OffloadConfig = NO_OFFLOAD,
    ) -> None:
        """Declare every family, so that all are on the port before the first request.

        speculation, lora: what the engine was built with; without, it verifies no drafts but those that come with requests,
            and takes no adapters.
        offload: the tiers that it is opened with.
        """
        labels = {"model": model, "version": version}
        self._gauges = FollowedGauges(
            (registry.gauge(family.name, family.description, {**labels, family.label: value}), read)
            for family in GAUGES
            for value, read in family.values.items()
        )
        self._counters = FollowedCounters(
            counter for family in COUNTERS for counter in family.declared(registry, labels)
        )
        self._histograms = [
            (registry.histogram(family.name, family.description, {**labels, **family.labels}, family.buckets), family)
            for family in HISTOGRAMS
        ]
        self._inter_token = registry.histogram(
            INTER_TOKEN_LATENCY, "Between two output tokens of a sequence", labels, SECONDS_BUCKETS
        )
        self._speculation = SpeculationMetrics(registry, labels, speculation)
        self._adapters = None if lora is None else AdapterMetrics(registry, labels, lora)
        has_disk = offload.disk_directory is not None
        self._offload = OffloadMetrics(registry, labels, has_disk) if offload.is_on else None
        # Triton drops a family that nobody holds, and its metrics with it. Last here, so that it goes after them.
        self._registry = registry

    def publish(self, stats: ExecutorStats) -> None:
        """Show a snapshot."""
        self._gauges.publish(stats)
        self._counters.publish(stats)
        if stats.speculation is not None:
            self._speculation.publish(stats.speculation)
        if stats.adapters is not None and self._adapters is not None:
            self._adapters.publish(stats.adapters)
        if stats.offload is not None and self._offload is not None:
            self._offload.publish(stats.offload)

    def observe_sequence(self, usage: Usage) -> None:
        """Count a finished sequence; one that never drew a token has no times to count."""
        if usage.num_output_tokens:
            for histogram, family in self._histograms:
                histogram.observe(float(family.value(usage)))

    def observe_inter_token(self, seconds: float) -> None:
        """Count the time between a sequence's consecutive tokens."""
        self._inter_token.observe(seconds)
