"""The metric families, against a registry that records."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.triton_metrics import RecordingRegistry
from trierarch.python_backend.executors.executor import ExecutorStats
from trierarch.python_backend.request import Usage
from trierarch.python_backend.triton.metrics import EngineMetrics

STATS = ExecutorStats(
    num_active_requests=7,
    num_scheduled_requests=5,
    num_context_requests=2,
    num_context_tokens=30,
    num_paused_requests=1,
    max_requests=64,
    num_steps=11,
    max_blocks=100,
    used_blocks=40,
    free_blocks=60,
    reused_blocks=9,
    tokens_per_block=16,
    used_slots=600,
    memory_bytes=12345,
)
USAGE = Usage(
    num_prompt_tokens=12,
    num_cached_tokens=0,
    num_output_tokens=60,
    arrival_ns=0,
    first_scheduled_ns=2_000_000,
    first_token_ns=30_000_000,
    last_token_ns=90_000_000,
)


@pytest.fixture
def registry() -> RecordingRegistry:
    return RecordingRegistry()


@pytest.fixture
def metrics(registry: RecordingRegistry) -> EngineMetrics:
    return EngineMetrics(registry, "tensorrt_llm", "1")


# family, category label, its values: as recorded from the exposition of TensorRT-LLM's backend
RECORDED = [
    ("nv_trt_llm_request_metrics", "request_type", "waiting context scheduled max active"),
    ("nv_trt_llm_runtime_memory_metrics", "memory_type", "pinned gpu cpu"),
    ("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "fraction tokens_per used free max reused"),
    (
        "nv_trt_llm_inflight_batcher_metrics",
        "inflight_batcher_specific_metric",
        "micro_batch_id generation_requests total_context_tokens paused_requests",
    ),
    ("nv_trt_llm_general_metrics", "general_type", "iteration_counter timestamp"),
    ("nv_llm_input_token_len", "response_metric_type", "total_input_tokens"),
    ("nv_llm_output_token_len", "response_metric_type", "total_output_tokens"),
]


@pytest.mark.parametrize(("family", "label", "values"), RECORDED)
def test_every_recorded_sample_is_there(
    registry: RecordingRegistry, metrics: EngineMetrics, family: str, label: str, values: str
) -> None:
    expected = {frozenset({"model": "tensorrt_llm", "version": "1", label: value}.items()) for value in values.split()}
    assert {labels for name, labels in registry.cells if name == family} == expected


def test_gauges_show_the_snapshot(registry: RecordingRegistry, metrics: EngineMetrics) -> None:
    metrics.publish(STATS)
    assert registry.values("nv_trt_llm_request_metrics", request_type="waiting") == [2]
    assert registry.values("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="fraction") == [0.4]
    assert registry.values(
        "nv_trt_llm_inflight_batcher_metrics", inflight_batcher_specific_metric="generation_requests"
    ) == [3]
    assert registry.values("trierarch_kv_cache_slots", slot_type="waste") == [40]


def test_an_unchanged_gauge_is_left_alone(registry: RecordingRegistry, metrics: EngineMetrics) -> None:
    metrics.publish(STATS)
    metrics.publish(replace(STATS, used_blocks=41))
    assert registry.values("nv_trt_llm_request_metrics", request_type="active") == [7]
    assert registry.values("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="used") == [40, 41]


def test_a_sequence_is_counted_once_in_seconds(registry: RecordingRegistry, metrics: EngineMetrics) -> None:
    metrics.observe_sequence(USAGE)
    metrics.observe_inter_token(0.25)
    assert registry.values("nv_llm_input_token_len") == [12]
    assert registry.values("nv_llm_output_token_len") == [60]
    assert registry.values("trierarch_time_to_first_token_seconds") == [0.03]
    assert registry.values("trierarch_queue_time_seconds") == [0.002]
    assert registry.values("trierarch_inter_token_latency_seconds") == [0.25]


def test_a_sequence_that_never_ran_is_not_timed(registry: RecordingRegistry, metrics: EngineMetrics) -> None:
    metrics.observe_sequence(replace(USAGE, num_output_tokens=0, first_token_ns=0))
    assert registry.values("trierarch_time_to_first_token_seconds") == []
