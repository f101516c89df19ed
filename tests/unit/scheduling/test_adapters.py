"""Stories of adapters: who starts, who waits, who overtakes, and that everyone is served by the version it asked for."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from support.checking_runner import alone
from support.memory_adapters import make_adapter
from support.scheduling import World, make_request
from trierarch.python_backend.adapters.adapter import Adapter
from trierarch.python_backend.errors import DeadlineExceeded, UnknownAdapter, UnusableAdapter
from trierarch.python_backend.request import FinishReason
from trierarch.python_backend.scheduling.plan import Plan


def make_world(**settings: Any) -> World:
    """Room for everything but adapters."""
    return World(**{"num_blocks": 200, "block_size": 4, "max_batch_size": 16, "max_adapters": 2, **settings})


class Cast:
    """Adapters by name."""

    def __init__(self) -> None:
        self._adapters: dict[str, Adapter] = {}

    def __getattr__(self, name: str) -> Adapter:
        return self._adapters.setdefault(name, make_adapter(name))


@pytest.fixture
def cast() -> Cast:
    return Cast()


def names(plan: Plan) -> list[str]:
    """Whose sequences a step computes."""
    return [item.sequence.request.request_id for item in plan.scheduled]


def load_all(world: World) -> None:
    while world.load():
        pass


def is_right(world: World, request_id: str, adapter: Adapter | None, max_tokens: int = 4) -> bool:
    """Whether a request of `prompt=5` has the output that it would have alone."""
    request = make_request(request_id, 5, adapter=adapter, max_tokens=max_tokens)
    return world.output(request_id) == alone(request, 0, 1000, ())[0]


def test_different_adapters_and_none_share_a_step(cast: Cast) -> None:
    world = make_world()
    chosen = {"base": None, "a": cast.a, "a too": cast.a, "b": cast.b}
    for request_id, adapter in chosen.items():
        world.add(request_id, 5, adapter=adapter)
    load_all(world)
    assert names(world.step()) == list(chosen)
    world.run()
    assert all(is_right(world, request_id, adapter) for request_id, adapter in chosen.items())
    assert len({tuple(world.output(request_id)) for request_id in ("base", "a", "b")}) == 3
    assert world.output("a") == world.output("a too")


def test_without_a_place_for_adapters_they_are_refused(cast: Cast) -> None:
    world = World(num_blocks=10, block_size=4)
    with pytest.raises(UnknownAdapter, match="rebuild the engine with --max-adapters"):
        world.add("a", 5, adapter=cast.a)
    assert not world.scheduler.has_work


def test_nobody_waits_for_a_disk_but_those_who_asked_for_it(cast: Cast) -> None:
    world = make_world()
    world.add("a", 5, adapter=cast.a)
    world.add("base", 5)
    assert names(world.step()) == ["base"]
    assert names(world.step()) == ["base"]
    load_all(world)
    assert names(world.step()) == ["base", "a"]
    world.now = 1000.0
    world.add("b", 5, adapter=cast.b)
    world.add("more", 5)
    world.now = 2000.0
    assert "more" in names(world.step()), "however long it takes"


def test_while_all_wait_for_a_disk_a_step_does_nothing(cast: Cast) -> None:
    world = make_world()
    world.add("a", 5, adapter=cast.a, deadline=10.0)
    assert names(world.step()) == []
    assert world.scheduler.has_work
    assert world.scheduler.seconds_to_deadline() == 10.0
    world.now = 10.0
    world.step()
    assert world.last("a").finish_reason is FinishReason.TIMEOUT
    assert isinstance(world.last("a").error, DeadlineExceeded)
    assert world.scheduler.seconds_to_deadline() is None
    assert not world.scheduler.has_work


def test_loading_begins_when_a_request_comes_and_by_urgency_from_the_next_step_on(cast: Cast) -> None:
    world = make_world(max_batch_size=1)
    world.add("running", 5, max_tokens=20)
    world.step()
    world.add("a", 5, adapter=cast.a)
    assert world.load(), "before any further step"
    for name in ("b", "c"):
        world.add(name, 5, adapter=getattr(cast, name))
    world.add("d", 5, adapter=cast.d, priority=5)
    world.step()
    load_all(world)
    assert [world.cache.get(getattr(cast, name).digest) is not None for name in "abcd"] == [True, False, False, True]


def test_who_finds_no_slot_is_overtaken_for_a_while_and_then_by_nobody(cast: Cast) -> None:
    world = make_world(max_adapters=1, adapter_patience_seconds=1.0)
    world.add("a", 5, adapter=cast.a, max_tokens=20)
    load_all(world)
    world.step()
    world.add("b", 5, adapter=cast.b)
    world.step()
    load_all(world)
    world.step()
    world.add("a2", 5, adapter=cast.a, max_tokens=20)
    world.add("base", 5, max_tokens=20)
    assert names(world.step()) == ["a", "a2", "base"], "they overtake b"
    world.now = 1.0
    world.add("a3", 5, adapter=cast.a)
    world.add("base3", 5)
    assert names(world.step()) == ["a", "a2", "base"], "nobody overtakes b any more"
    while "b" not in names(world.step()):
        assert not {"a3", "base3"} & set(names(world.plans[-1]))
    assert "base3" in names(world.plans[-1])
    world.run()
    assert all(world.last(name).finish_reason is FinishReason.LENGTH for name in ("a", "b", "a2", "a3", "base3"))


@pytest.mark.parametrize("comes_amid_steps", [False, True], ids=["quick loader", "late loader"])
@pytest.mark.parametrize("host_bytes", [4, 100])
def test_a_steady_stream_for_one_adapter_starves_no_other(cast: Cast, host_bytes: int, comes_amid_steps: bool) -> None:
    """One slot, or memory for one adapter: b gets its turn within its patience and the time that others run."""
    max_adapters = 1 if host_bytes == 100 else 2
    world = make_world(max_adapters=max_adapters, host_bytes=host_bytes, adapter_patience_seconds=1.0)
    world.cache._arrange_draft = None
    world.loads_amid_steps = comes_amid_steps
    waits: dict[str, float] = {}
    for turn in range(300):
        world.now = turn * 0.1
        world.add(f"a{turn}", 3, adapter=cast.a, max_tokens=5)
        if turn % 50 == 10:
            world.add(f"b{turn}", 3, adapter=cast.b, max_tokens=5)
        for item in world.load_and_step().scheduled:
            request = item.sequence.request
            waits.setdefault(request.request_id, world.now - request.arrival_time)
    assert [name for name in waits if name.startswith("b")] == [f"b{turn}" for turn in range(10, 300, 50)]
    assert 1.0 < max(wait for name, wait in waits.items() if name.startswith("b")) < 1.0 + 0.7
    assert world.cache.num_loads <= 2 * 6 + 1, "changing them for each other costs two loads a turn of b"


def test_whoever_is_needed_soon_keeps_its_slot(cast: Cast) -> None:
    world = make_world(max_adapters=2, max_batch_size=1, max_num_tokens=64)
    for name in ("a", "b"):
        world.add(name, 5, adapter=getattr(cast, name), max_tokens=1)
    world.run()
    assert world.adapters is not None
    slots = world.adapters.slots
    world.add("base", 5, max_tokens=3)
    world.step()
    world.add("c", 5, adapter=cast.c, max_tokens=1)
    world.add("a2", 5, adapter=cast.a, max_tokens=1)
    world.run()
    assert slots.num_evictions == 1, "c takes the slot of b, although a was unused for longer"


def test_a_new_version_is_for_who_comes_later(cast: Cast) -> None:
    world = make_world()
    old, new = make_adapter("a", 1), make_adapter("a", 2)
    world.add("running", 5, adapter=old, max_tokens=8)
    load_all(world)
    world.step()
    world.add("waiting", 5, adapter=old, max_tokens=8)
    world.add("late", 5, adapter=new, max_tokens=8)
    world.step()
    load_all(world)
    assert names(world.step()) == ["running", "waiting", "late"]
    world.run()
    assert is_right(world, "running", old, 8)
    assert is_right(world, "waiting", old, 8)
    assert is_right(world, "late", new, 8)
    assert world.usage("late").num_cached_tokens == 0, "nothing is shared between versions"
    assert world.usage("waiting").num_cached_tokens == 4


def test_a_preempted_sequence_gets_its_version_back(cast: Cast) -> None:
    world = make_world(num_blocks=5, block_size=2, max_adapters=1, host_bytes=4, enable_prefix_caching=False)
    world.cache._arrange_draft = None
    world.add("a", 3, adapter=cast.a, max_tokens=6)
    load_all(world)
    world.step()
    world.add("a2", 3, adapter=cast.a, max_tokens=6)
    world.run()
    assert world.usage("a2").num_preemptions > 0
    request = make_request("a2", 3, adapter=cast.a, max_tokens=6)
    assert world.output("a") == world.output("a2") == alone(request, 0, 1000, ())[0]


def test_siblings_hold_it_each(cast: Cast) -> None:
    world = make_world()
    world.add("a", 5, adapter=cast.a, n=3, max_tokens=6)
    load_all(world)
    world.step()
    world.step()
    assert world.adapters is not None
    digest = cast.a.digest
    assert world.adapters.slots._holders[digest] == 3
    world.scheduler.abort("a", index=0)
    world.scheduler.check_integrity()
    assert world.adapters.slots._holders[digest] == 2
    world.scheduler.abort("a")
    world.scheduler.check_integrity()
    assert world.adapters.slots.num_active == 0


def test_a_damaged_adapter_ends_those_who_asked_for_it_and_nobody_notices(cast: Cast) -> None:
    world = make_world(max_batch_size=2)
    bad = make_adapter("bad", fault="layers.0.q.a holds NaN")
    world.add("running", 5, adapter=cast.a, max_tokens=20)
    world.add("full", 5, max_tokens=20)
    load_all(world)
    world.step()
    for request_id in ("bad", "bad too"):
        world.add(request_id, 5, adapter=bad, n=2)
    world.add("good", 5, adapter=cast.b)
    world.step()
    load_all(world)
    world.step()
    for request_id in ("bad", "bad too"):
        for index in range(2):
            last = world.last(request_id, index)
            assert last.finish_reason is FinishReason.ERROR
            assert isinstance(last.error, UnusableAdapter)
            assert "adapter is 'bad': layers.0.q.a holds NaN" in str(last.error)
    world.add("bad again", 5, adapter=bad)
    world.step()
    assert world.last("bad again").finish_reason is FinishReason.ERROR
    world.run()
    assert is_right(world, "running", cast.a, 20)
    assert is_right(world, "good", cast.b)


def test_a_thousand_adapters_drain() -> None:
    world = make_world(max_adapters=4, host_bytes=40, max_queue_size=1000, max_batch_size=8)
    adapters = {str(number): make_adapter(str(number)) for number in range(1000)}
    for name, adapter in adapters.items():
        world.add(name, 5, adapter=adapter, max_tokens=2)
    num_steps = world.run(max_steps=3000)
    assert num_steps < 1500
    assert all(is_right(world, name, adapter, 2) for name, adapter in adapters.items())
    assert world.cache.num_loads == 1000, "each once"


def test_who_asked_for_the_same_is_served_together(cast: Cast) -> None:
    """Three adapters, two slots, requests in turn: they are not changed for each other with every request."""
    world = make_world(max_adapters=2, max_queue_size=300, max_batch_size=8)
    random = Random(0)
    for number in range(300):
        world.add(str(number), 5, adapter=getattr(cast, random.choice("abc")), max_tokens=3)
    for _ in range(3000):
        if not world.scheduler.has_work:
            break
        world.now += 0.05
        world.load_and_step()
    assert not world.scheduler.has_work
    assert world.adapters is not None
    assert world.adapters.slots.num_evictions < 60


def test_stats_name_who_runs_and_who_is_waited_for(cast: Cast) -> None:
    world = make_world(max_adapters=1)
    assert world.adapters is not None
    bad = make_adapter("bad", fault="damaged")
    world.add("bad", 5, adapter=bad)
    world.add("a", 5, adapter=cast.a, max_tokens=9)
    world.add("b", 5, adapter=cast.b)
    world.add("base", 5, max_tokens=9)
    world.load()
    world.step()
    load_all(world)
    world.step()
    stats = world.adapters.stats(world.scheduler.requests())
    assert (stats.running, stats.waiting) == (("a",), ("b",))
    assert (stats.max_adapters, stats.num_active, stats.num_loaded) == (1, 1, 1)
    assert (stats.num_loads, stats.num_load_failures, stats.num_evictions) == (1, 1, 0)
    assert stats.loaded_bytes == world.cache.num_bytes > 0
