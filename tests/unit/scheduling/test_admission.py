"""Who is let in, in which order, and how a request that is not served ends."""

from __future__ import annotations

from typing import Any

import pytest

from support.scheduling import World
from trierarch.python_backend.errors import Cancelled, DeadlineExceeded, InvalidRequest, Overloaded
from trierarch.python_backend.request import FinishReason
from trierarch.python_backend.scheduling.config import SchedulerConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ()}, "number of prompt tokens is 0: must be at least 1"),
        ({"prompt": 64}, r"number of prompt tokens is 64: must be below the engine's max_seq_len \(64\)"),
        ({"prompt": 60, "max_tokens": 5}, "max_tokens is 5: must be at most 4 after 60 prompt tokens"),
        ({"prompt": 30, "max_tokens": 12}, "max_tokens is 12: .* needs 41 KV slots and the cache has 40"),
        ({"prompt": 3, "priority": 101}, "priority is 101: must be between -100 and 100"),
    ],
)
def test_what_can_never_run_is_the_callers_fault(fields: dict[str, Any], message: str) -> None:
    world = World(num_blocks=10, block_size=4, max_seq_len=64)
    with pytest.raises(InvalidRequest, match=message):
        world.add("a", **fields)
    assert not world.scheduler.has_work


def test_the_largest_request_that_fits_runs() -> None:
    world = World(num_blocks=10, block_size=4, max_seq_len=64)
    world.add("a", prompt=30, max_tokens=11, n=2)
    world.run()
    assert [len(world.output("a", index)) for index in range(2)] == [11, 11]


def test_an_id_in_use_is_refused() -> None:
    world = World(num_blocks=10, block_size=4)
    world.add("a", prompt=3)
    with pytest.raises(InvalidRequest, match="request_id is 'a': is in use"):
        world.add("a", prompt=3)


def test_a_full_queue_refuses_requests_whatever_their_n() -> None:
    world = World(num_blocks=10, block_size=4, max_queue_size=2, max_batch_size=1)
    world.add("a", prompt=3, n=5)
    world.add("b", prompt=3)
    # Clients look for the first words over gRPC, for the others over HTTP (TensorRT-LLM's test_max_queue_size.py).
    with pytest.raises(Overloaded, match="Exceeds maximum queue size: Maximum queue size of 2 has been reached"):
        world.add("c", prompt=3)
    world.step()
    world.add("c", prompt=3)
    with pytest.raises(Overloaded):
        world.add("d", prompt=3)
    world.scheduler.abort("b")
    world.add("d", prompt=3)
    world.run()


def test_priority_goes_first_among_those_that_wait() -> None:
    world = World(num_blocks=10, block_size=4, max_batch_size=1)
    for name, priority in [("a", 0), ("low", -1), ("b", 0), ("high", 1)]:
        world.add(name, prompt=3, max_tokens=1, priority=priority)
    world.run()
    assert list(world.deltas) == [("high", 0), ("a", 0), ("b", 0), ("low", 0)]


def test_waiting_long_enough_overtakes_any_priority() -> None:
    world = World(num_blocks=10, block_size=4, max_batch_size=1, ageing_seconds=2.0)
    world.add("low", prompt=3, max_tokens=1, priority=-3)
    for turn in range(20):
        world.now = float(turn)
        world.add(f"high {turn}", prompt=3, max_tokens=1, priority=3)
        world.step()
    assert list(world.deltas).index(("low", 0)) == 12


def test_nobody_overtakes_a_request_that_waits_for_blocks() -> None:
    world = World(num_blocks=8, block_size=4)
    world.add("running", prompt=15, max_tokens=8)
    world.step()
    world.add("large", prompt=(9,) * 20, max_tokens=1)
    world.add("small", prompt=(8,), max_tokens=1)
    world.run()
    assert list(world.deltas) == [("running", 0), ("large", 0), ("small", 0)]


def test_cancelling_frees_the_blocks_at_once_and_tells_the_runner() -> None:
    world = World(num_blocks=10, block_size=4)
    world.add("a", prompt=10, n=3)
    world.add("b", prompt=(5,))
    world.step()
    assert world.kv.num_used_blocks > 0
    world.scheduler.abort("a")
    world.collect()
    assert world.kv.num_used_blocks == 1
    for index in range(3):
        assert world.last("a", index).finish_reason is FinishReason.CANCELLED
        assert isinstance(world.last("a", index).error, Cancelled)
    plan = world.step()
    assert set(plan.finished_sequence_ids) >= {0}
    assert 3 not in plan.finished_sequence_ids


def test_cancelling_one_that_waits_or_is_unknown_or_over() -> None:
    world = World(num_blocks=10, block_size=4)
    world.add("a", prompt=10, n=2)
    world.scheduler.abort("a", FinishReason.STOP)
    world.scheduler.abort("a")
    world.scheduler.abort("nobody")
    world.collect()
    assert [world.last("a", index).finish_reason for index in range(2)] == [FinishReason.STOP] * 2
    assert world.last("a").error is None
    assert not world.scheduler.has_work


def test_the_siblings_of_a_cancelled_leader_run() -> None:
    world = World(num_blocks=10, block_size=4, max_num_tokens=4)
    world.add("a", prompt=10, n=3, max_tokens=2)
    world.step()
    world.scheduler.abort("a", index=0)
    world.scheduler.abort("a", index=2)
    world.run()
    assert [world.last("a", index).finish_reason for index in range(3)] == ["cancelled", "length", "cancelled"]


def test_deadlines_end_running_and_waiting_requests() -> None:
    world = World(num_blocks=10, block_size=4, max_batch_size=2)
    world.add("running", prompt=3, max_tokens=20, deadline=1.0)
    world.add("free", prompt=3, max_tokens=6)
    world.add("waiting", prompt=3, deadline=1.0, n=2)
    world.add("later", prompt=3, deadline=5.0, max_tokens=20)
    world.step()
    world.now = 1.0
    world.step()
    for name, index in [("running", 0), ("waiting", 0), ("waiting", 1)]:
        assert world.last(name, index).finish_reason is FinishReason.TIMEOUT
        assert isinstance(world.last(name, index).error, DeadlineExceeded)
    world.now = 5.0
    world.run()
    assert world.last("later").finish_reason is FinishReason.TIMEOUT
    assert world.last("free").finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("limit", ["max_batch_size", "max_seq_len", "max_num_tokens", "max_queue_size"])
def test_limits_are_positive(limit: str) -> None:
    limits = {"max_batch_size": 1, "max_seq_len": 2, "max_num_tokens": 1, "max_queue_size": 1, limit: 0}
    with pytest.raises(ValueError, match=f"{limit} is 0"):
        SchedulerConfig(**limits)
