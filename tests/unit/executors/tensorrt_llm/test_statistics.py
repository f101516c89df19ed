"""What is told of steps that the library tells of once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from support.eventually import eventually
from support.triton_metrics import RecordingRegistry
from trierarch.builder.manifest import DrafterKind, Speculation
from trierarch.python_backend.executors.tensorrt_llm import drain
from trierarch.python_backend.executors.tensorrt_llm.iteration_stats import IterationStats
from trierarch.python_backend.request import SamplingParams
from trierarch.python_backend.triton.metrics import EngineMetrics

MakeStandIn = Callable[..., Any]


@pytest.mark.parametrize("release", ["1.0", "1.3"])
def test_the_gauges_are_filled(stand_in: MakeStandIn, release: str) -> None:
    library = stand_in(release)
    executor = library.open()
    registry = RecordingRegistry()
    metrics = EngineMetrics(registry, "tensorrt_llm", "1")
    idle = executor.stats()
    assert (idle.num_steps, idle.used_blocks, idle.num_active_requests) == (0, 0, 0)
    library.controls.pause_at = 20
    library.controls.gate.clear()
    streams = [library.ask(executor, [i, 2, 3], SamplingParams(max_tokens=40)) for i in range(3)]
    eventually(lambda: library.controls.llms[0]._engine.num_live == 3, "all three at the library")
    library.controls.gate.set()
    eventually(lambda: executor.stats().num_steps == 20, "the first steps")
    metrics.publish(executor.stats())
    for kind, value in {"active": 3, "scheduled": 3, "waiting": 0}.items():
        assert registry.values("nv_trt_llm_request_metrics", request_type=kind)[-1] == value
    assert registry.values("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="used")[-1] == 3
    library.controls.gate.set()
    for stream in streams:
        stream.finish()
    eventually(lambda: executor.stats().num_steps >= 40, "every step")
    metrics.publish(executor.stats())
    for memory, value in (("gpu", 1 << 30), ("pinned", 1 << 20)):
        assert registry.values("nv_trt_llm_runtime_memory_metrics", memory_type=memory)[-1] == value
    blocks = {"max": 100, "used": 0, "free": 100, "tokens_per": 32, "fraction": 0}
    for kind, value in blocks.items():
        assert registry.values("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type=kind)[-1] == value
    assert registry.values("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="reused")[-1] >= 40
    assert registry.values("nv_trt_llm_request_metrics", request_type="max")[-1] == 8
    batcher = "nv_trt_llm_inflight_batcher_metrics"
    assert registry.values(batcher, inflight_batcher_specific_metric="micro_batch_id")[-1] == 3
    assert registry.values(batcher, inflight_batcher_specific_metric="generation_requests")[-1] == 0


def test_drafts_are_counted_once(stand_in: MakeStandIn) -> None:
    library = stand_in()
    speculation = Speculation(drafters=(DrafterKind.EAGLE3,))
    executor = library.open(library.manifest().model_copy(update={"speculation": speculation}))
    library.ask(executor, [1, 2, 3]).finish()
    eventually(lambda: executor.stats().num_steps == 8, "all steps")
    for _ in range(2):
        told = executor.stats().speculation
        assert told is not None
        (drafter,) = told.drafters
        assert (drafter.kind, drafter.num_drafts) == (DrafterKind.EAGLE3, 16)
        assert (drafter.num_draft_tokens, drafter.num_accepted_tokens) == (32, 24)
        assert (told.num_steps, told.num_steps_speculated) == (8, 8)
    registry = RecordingRegistry()
    EngineMetrics(registry, "tensorrt_llm", "1", speculation).publish(executor.stats())
    assert registry.values("trierarch_accepted_draft_tokens_total", drafter="eagle3") == [24]


def test_a_release_that_stops_telling_is_asked_again_with_the_next_request(
    stand_in: MakeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "QUIET_SECONDS", 0.01)
    library = stand_in()
    executor = library.open()
    for count in (8, 16, 24):
        library.ask(executor, [1, 2, 3]).finish()
        eventually(lambda count=count: executor.stats().num_steps == count, f"{count} steps")  # type: ignore[misc]


def test_records_without_a_part_count_what_they_have() -> None:
    stats = IterationStats(DrafterKind.MTP)
    stats.take({"iter": 1, "kvCacheStats": None, "gpuMemUsage": "unknown"})
    stats.take({})
    assert stats.num_steps == 2
    assert (stats.general("gpuMemUsage"), stats.kv_cache("usedNumBlocks"), stats.in_flight("microBatchId")) == (0, 0, 0)


def test_what_ends_in_a_pause_is_read_all_the_same() -> None:
    """The queue is empty when it is looked at; what ends before the next look fills it."""
    records: list[int] = []
    busy, taken = [True], list[int]()

    def end() -> None:
        records.append(7)
        busy[0] = False

    async def read(_: float) -> AsyncIterator[int]:
        while records:
            yield records.pop(0)
        if busy[0]:
            asyncio.get_running_loop().call_later(0.01, end)

    async def run() -> None:
        one = drain.Drain("the queue", read, taken.append)
        one.wake()
        task = asyncio.ensure_future(one.run(lambda: busy[0]))
        while not taken:
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert taken == [7]
