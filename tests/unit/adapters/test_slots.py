"""Slots: as many adapters at once as there are, the same slot for the same adapter, and nobody's twice."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.memory_adapters import ToyWeights
from trierarch.python_backend.adapters.cache import LoadedAdapter
from trierarch.python_backend.adapters.slots import AdapterSlots
from trierarch.python_backend.kv.integrity import IntegrityError


def loaded(digest: str) -> LoadedAdapter:
    return LoadedAdapter(ToyWeights(digest, 1))


def use(slots: AdapterSlots, digest: str, needed: str = "") -> int:
    """The slot of one that comes and goes."""
    slot = slots.acquire(digest, loaded(digest), needed).slot
    slots.release(digest)
    return slot


def test_all_holders_have_the_same_and_its_slot_is_kept_for_it() -> None:
    slots = AdapterSlots(2)
    first = slots.acquire("a", loaded("a"))
    assert slots.acquire("a", loaded("a")) is first
    assert slots.acquire("b", loaded("b")).slot != first.slot
    assert not slots.has_room("c")
    assert slots.has_room("a")
    slots.release("a")
    assert slots.is_active("a")
    slots.release("a")
    assert not slots.is_active("a")
    assert slots.has_room("c")
    again = slots.acquire("a", loaded("a"))
    assert again.slot == first.slot
    assert again is not first
    assert slots.num_evictions == 0


def test_the_longest_unused_loses_its_slot_unless_it_is_needed_soon() -> None:
    slots = AdapterSlots(3)
    places = {digest: use(slots, digest) for digest in "abc"}
    assert use(slots, "d", needed="ad") == places["b"]
    assert use(slots, "e", needed="acde") == places["a"], "all are needed: the longest unused it is"
    assert slots.num_evictions == 2


def test_the_count_of_holders_is_checked() -> None:
    slots = AdapterSlots(2)
    slots.acquire("a", loaded("a"))
    slots.check_integrity(Counter("a"))
    with pytest.raises(IntegrityError, match="held by"):
        slots.check_integrity(Counter("aa"))


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), num_slots=st.integers(1, 4))
def test_whoever_comes_and_goes_no_two_share_a_slot(seed: int, num_slots: int) -> None:
    random, slots = Random(seed), AdapterSlots(num_slots)
    holders: Counter[str] = Counter()
    for _ in range(100):
        digest = random.choice("abcdef")
        if random.random() < 0.5:
            room = len(holders) < num_slots or digest in holders
            assert slots.has_room(digest) == room
            if room:
                active = slots.acquire(digest, loaded(digest), random.sample("abcdef", 2))
                assert active.digest == digest
                holders[digest] += 1
        elif holders[digest]:
            slots.release(digest)
            holders[digest] -= 1
        holders = +holders
        slots.check_integrity(holders)
        assert slots.num_active == len(holders) <= num_slots
