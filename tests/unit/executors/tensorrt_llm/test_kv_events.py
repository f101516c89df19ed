"""What the library tells of its cached blocks: in order, once, and as far as it was read in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.eventually import eventually
from support.tensorrt_llm_engines import FLOWS
from support.triton_metrics import RecordingRegistry
from trierarch.builder.manifest import Flow
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.executors.kv_event import KvEvent, KvEventKind
from trierarch.python_backend.executors.tensorrt_llm.kv_events import KvEvents
from trierarch.python_backend.request import SamplingParams
from trierarch.python_backend.triton.kv_events import kv_events
from trierarch.python_backend.triton.metrics import EngineMetrics

MakeStandIn = Callable[..., Any]
EVENTS = {"kv_cache_config": {"event_buffer_max_size": 64}}


def stored(event_id: int, *hashes: int, parent: int | None = None) -> dict[str, Any]:
    blocks = [{"type": "stored_block", "block_hash": one, "tokens": [], "cache_level": 0} for one in hashes]
    return {"event_id": event_id, "data": {"type": "stored", "parent_hash": parent, "blocks": blocks}}


def removed(event_id: int, *hashes: int) -> dict[str, Any]:
    return {"event_id": event_id, "data": {"type": "removed", "block_hashes": list(hashes)}}


@pytest.mark.parametrize("release, flow", FLOWS)
def test_events_come_in_order_and_end_in_the_metrics(stand_in: MakeStandIn, release: str, flow: Flow) -> None:
    library = stand_in(release, flow)
    library.controls.cached_blocks = 3
    executor = library.open(library.manifest(llm_args=EVENTS))
    registry = RecordingRegistry()
    metrics = EngineMetrics(registry, "tensorrt_llm", "1")
    library.ask(executor, [1, 2, 3, 4, 5], SamplingParams(max_tokens=8, temperature=0.0)).finish()  # 13: three blocks
    eventually(lambda: executor.stats().stored_blocks == 3, "the first sequence's blocks")
    created, *first = executor.kv_events(0)
    assert created.kind is KvEventKind.CREATED
    assert [event.kind for event in first] == [KvEventKind.STORED] * 3
    assert [event.parent_hash for event in first] == [None, *(event.block_hashes[0] for event in first[:-1])]
    library.ask(executor, [9, 2, 3, 4], SamplingParams(max_tokens=4, temperature=0.0)).finish()  # two more
    eventually(lambda: executor.stats().removed_blocks == 2, "those that made room")
    later = executor.kv_events(4)
    assert [event.number for event in later] == [4, 5, 6, 7]
    gone = [event.block_hashes[0] for event in later if event.kind is KvEventKind.REMOVED]
    assert gone == [event.block_hashes[0] for event in first[:2]], "the longest not asked for"
    stats = executor.stats()
    assert (stats.cached_blocks, stats.lost_kv_events) == (3, 0)
    for _ in range(2):
        metrics.publish(executor.stats())
    changes = "trierarch_prefix_cache_blocks_total"
    assert registry.values(changes, change="stored") == [5]
    assert registry.values(changes, change="removed") == [2]
    assert registry.values("trierarch_prefix_cache_blocks", state="cached") == [3]


def test_an_engine_that_was_not_built_for_it_tells_of_none(stand_in: MakeStandIn) -> None:
    library = stand_in()
    executor = library.open()
    library.ask(executor, [1, 2, 3, 4, 5]).finish()
    assert executor.kv_events(0) is None
    assert executor.stats().cached_blocks == 0
    with pytest.raises(InvalidRequest, match="--kv-event-buffer"):
        kv_events(executor.kv_events(0), 0)


def test_events_as_json_have_no_tokens() -> None:
    ((name, array),) = kv_events([KvEvent(number=2, kind=KvEventKind.STORED, block_hashes=(7,), parent_hash=5)], 2)
    assert name == "kv_events"
    assert array.tolist() == [b'{"number": 2, "kind": "stored", "block_hashes": [7], "parent_hash": 5}']
    ((_, empty),) = kv_events([], 0)
    assert empty.shape == (0,)


def test_what_the_library_dropped_is_counted() -> None:
    events = KvEvents()
    events.take(stored(0, 1, 2))
    events.take([stored(4, 3), removed(5, 1)])
    assert events.counts() == {"cached_blocks": 2, "stored_blocks": 3, "removed_blocks": 1, "lost_kv_events": 3}


def test_what_is_no_event_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    events = KvEvents()
    for record in ({}, {"data": None}, {"event_id": 0, "data": {"type": "melted"}}, [{"event_id": 1}], [None]):
        events.take(record)  # type: ignore[arg-type]
    events.take({"event_id": 7, "data": {"type": "updated", "block_hash": 9, "priority": None}})
    assert events.since(0) == (KvEvent(number=0, kind=KvEventKind.UPDATED, block_hashes=(9,)),)
    secret = {"event_id": 8, "data": {"type": "stored", "blocks": [{"tokens": ["secret"]}]}}
    events.take(secret)
    assert len(caplog.records) == 1
    assert "secret" not in caplog.text


def test_hashes_may_be_text() -> None:
    events = KvEvents()
    events.take(removed(0, *["ff" * 32]))  # type: ignore[list-item]
    assert events.since(0)[0].block_hashes == (int("ff" * 32, 16),)


@given(st.lists(st.integers(1, 3), max_size=30), st.integers(1, 8), st.integers(0, 40))
def test_a_reader_sees_each_event_once_or_knows_of_the_gap(sizes: list[int], kept: int, since: int) -> None:
    events = KvEvents(kept)
    for event_id, size in enumerate(sizes):
        events.take(stored(event_id, *range(size)))
    found = events.since(since)
    numbers = [event.number for event in found]
    assert numbers == list(range(max(since, len(sizes) - kept, 0), len(sizes)))
    assert events.counts()["stored_blocks"] == sum(sizes)
