"""Servers that do not fit into memory together take turns."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from trierarch.orchestrator.sleep.lifecycle import Deed, Lifecycle, Phase
from trierarch.orchestrator.sleep.rest import Rest
from trierarch.orchestrator.sleep.room import Room, Tenant

REST = Rest(idle_timeout=1000.0, wake_timeout=500.0)


def room_of(budget: int | None, **sizes: int) -> Room:
    return Room({name: Tenant(Lifecycle(REST), size) for name, size in sizes.items()}, budget)


def deeds(room: Room, now: float) -> dict[str, Deed]:
    return {name: orders.deed for name, orders in room.decide(now).items() if orders.deed is not None}


def use(room: Room, name: str, now: float) -> None:
    """Wake one that fits, and answer its request."""
    lifecycle = room.tenants[name].lifecycle
    lifecycle.arrive(now)
    if lifecycle.phase is Phase.ASLEEP:
        assert deeds(room, now) == {name: Deed.START}
        lifecycle.woke(now)
    assert room.decide(now)[name].admitted
    lifecycle.leave(now, lifecycle.wakes, True)
    assert deeds(room, now) == {}


def test_the_least_recently_used_one_goes_when_memory_is_short() -> None:
    room = room_of(10, a=4, b=4, c=4)
    use(room, "a", 1.0)
    use(room, "b", 2.0)
    use(room, "a", 3.0)

    room.tenants["c"].lifecycle.arrive(4.0)

    assert deeds(room, 4.0) == {"b": Deed.STOP}
    assert deeds(room, 4.5) == {}, "the memory is not there yet"
    room.tenants["b"].lifecycle.stopped()
    assert deeds(room, 5.0) == {"c": Deed.START}
    assert room.tenants["a"].lifecycle.phase is Phase.AWAKE
    assert room.num_used_bytes == 8


def test_what_is_busy_finishes_first_and_takes_nothing_new() -> None:
    room = room_of(5, a=4, b=4)
    a, b = room.tenants["a"].lifecycle, room.tenants["b"].lifecycle
    a.arrive(1.0)
    room.decide(1.0)
    a.woke(1.0)
    room.decide(1.0)

    b.arrive(2.0)
    assert deeds(room, 2.0) == {}
    late = a.arrive(3.0)
    assert not room.decide(3.0)["a"].admitted
    a.leave(4.0, 1, True)

    assert deeds(room, 4.0) == {"a": Deed.STOP}
    a.stopped()
    assert deeds(room, 5.0) == {"b": Deed.START}
    b.woke(5.0)
    assert room.decide(5.0)["b"].admitted
    b.leave(6.0, 1, True)
    assert deeds(room, 6.0) == {"b": Deed.STOP}, "and then it is the other's turn again"
    b.stopped()
    assert deeds(room, 7.0) == {"a": Deed.START}
    a.woke(8.0)
    assert room.decide(8.0)["a"].admitted == [late]


def test_one_larger_than_the_room_runs_alone() -> None:
    room = room_of(5, a=4, giant=50)
    use(room, "a", 1.0)
    room.tenants["giant"].lifecycle.arrive(2.0)

    assert deeds(room, 2.0) == {"a": Deed.STOP}
    room.tenants["a"].lifecycle.stopped()
    assert deeds(room, 3.0) == {"giant": Deed.START}


def test_without_a_budget_everyone_has_room() -> None:
    room = room_of(None, a=1 << 60, b=1 << 60)
    for tenant in room.tenants.values():
        tenant.lifecycle.arrive(0.0)

    assert deeds(room, 0.0) == {"a": Deed.START, "b": Deed.START}


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10), min_size=1, max_size=5),
    budget=st.integers(1, 20),
    asked=st.lists(st.integers(0, 4), max_size=40),
)
def test_memory_is_never_exceeded_and_everyone_gets_a_turn(sizes: list[int], budget: int, asked: list[int]) -> None:
    """Servers that start and stop one step after they are told to, and requests that take one step."""
    room = room_of(budget, **{str(index): size for index, size in enumerate(sizes)})
    now, num_asked, num_answered = 0.0, 0, 0
    for step in range(len(asked) * (2 + 4 * len(sizes))):
        now += 1.0
        if step < len(asked):
            room.tenants[str(asked[step] % len(sizes))].lifecycle.arrive(now)
            num_asked += 1
        for tenant in room.tenants.values():
            lifecycle = tenant.lifecycle
            if lifecycle.phase is Phase.WAKING:
                lifecycle.woke(now)
            elif lifecycle.phase is Phase.STOPPING:
                lifecycle.stopped()
            for _ in range(lifecycle.num_leases):
                lifecycle.leave(now, lifecycle.wakes, True)
                num_answered += 1
        room.decide(now)
        running = [
            tenant for tenant in room.tenants.values() if tenant.lifecycle.phase not in (Phase.ASLEEP, Phase.FAILED)
        ]
        assert room.num_used_bytes <= budget or len(running) == 1
    assert num_answered == num_asked
