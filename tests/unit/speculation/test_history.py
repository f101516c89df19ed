from __future__ import annotations

import tracemalloc
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.drafting import longest_matches
from trierarch.python_backend.speculation import suffix_index
from trierarch.python_backend.speculation.history import GRAMS, History
from trierarch.python_backend.speculation.tenants import Tenants, token_ids_of

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=25)
episodes = st.lists(st.tuples(st.sampled_from(["", "a", "b"]), tokens), max_size=60)


@given(
    episodes=episodes,
    tails=st.lists(tokens, min_size=1, max_size=4),
    num_bytes=st.sampled_from([15_000, 20_000, 40_000]),
)
@settings(deadline=None, max_examples=40)
def test_the_latest_episodes_of_the_tenant_are_found_and_nothing_else(
    episodes: list[tuple[str, list[int]]], tails: list[list[int]], num_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suffix_index, "MAX_OCCURRENCES", 10**6)
        tenants = Tenants()
        held = {salt: tenants.hold("", salt) for salt in ("", "a", "b")}
        history = History(num_bytes, tenants)
        for salt, text in episodes:
            history.add(held[salt], held[salt].stored(text))
            assert history.num_bytes <= num_bytes
        # Oldest out first: what is left are the last ones.
        left = episodes[len(episodes) - len(history) :]
        for salt, tenant in held.items():
            texts = [text[-history.longest :] for owner, text in left if owner == salt]
            for tail in tails:
                match = history.index.find(tenant.stored(tail))
                length, places = longest_matches(tail, texts, GRAMS[-1])
                assert match.length == length
                assert len(match.ends) == len(places)
                nexts = [
                    token_ids_of(history.index.follow(suffix_index.Match(1, (end,)), 99, 0.0)[0]) for end in match.ends
                ]
                assert nexts == [tuple(texts[which][end + 1 :]) for which, end in reversed(places)]


def test_room_is_used_before_anything_is_forgotten() -> None:
    tenants = Tenants()
    tenant = tenants.hold("", "")
    history = History(1 << 20, tenants)
    for _ in range(300):
        history.add(tenant, tenant.stored(range(100)))
    assert len(history) == 300
    for _ in range(300):
        history.add(tenant, tenant.stored(range(100)))
    assert 300 < len(history) < 600


@pytest.mark.parametrize("num_bytes", [0, 1, 100, 2_000])
def test_too_few_bytes_keep_nothing(num_bytes: int) -> None:
    tenants = Tenants()
    tenant = tenants.hold("", "")
    history = History(num_bytes, tenants)
    history.add(tenant, tenant.stored([1, 2, 3]))
    assert (len(history), history.num_bytes) == (0, 0)


def test_a_tenant_is_known_as_long_as_it_is_held_and_its_number_never_comes_back() -> None:
    tenants = Tenants()
    history = History(15_000, tenants)
    first = tenants.hold("adapter", "salt")
    history.add(first, first.stored([1, 2, 3]))
    tenants.release(first)
    assert tenants.hold("adapter", "salt") is first
    tenants.release(first)
    other = tenants.hold("", "")
    while first.num_holders:
        history.add(other, other.stored([4, 5, 6]))
    assert len(tenants) == 1
    assert tenants.hold("adapter", "salt").number not in (first.number, other.number)


def test_names_that_would_take_much_of_it_are_not_kept() -> None:
    tenants = Tenants()
    modest, greedy = tenants.hold("", ""), tenants.hold("", "x" * 100_000)
    history = History(100_000, tenants)
    history.add(modest, modest.stored([1, 2, 3]))
    history.add(greedy, greedy.stored([1, 2, 3]))
    assert history.index.find(modest.stored([1, 2])).length == 2
    assert len(history) == 1


def test_of_a_long_answer_the_end_is_kept() -> None:
    tenants = Tenants()
    tenant = tenants.hold("", "")
    history = History(15_000, tenants)
    history.add(tenant, tenant.stored(range(1_000)))
    assert history.index.find(tenant.stored([998, 999])).length == 2
    assert history.index.find(tenant.stored([999 - history.longest, 1_000 - history.longest])).length == 0
    assert history.index.find(tenant.stored([1_000 - history.longest, 1_001 - history.longest])).length == 2


@pytest.mark.parametrize("num_tenants", [1, 20, 1_000])
def test_bytes_are_what_python_takes(num_tenants: int) -> None:
    tenants = Tenants()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        history = History(1 << 18, tenants)
        empty, _ = tracemalloc.get_traced_memory()
        empty_bytes = history.num_bytes
        for turn in range(300):
            tenant = tenants.hold("", f"salt {turn % num_tenants}")
            history.add(tenant, tenant.stored([1, 2, 3]))
            tenants.release(tenant)
        full, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.9 * empty_bytes < empty - before <= empty_bytes
    assert 0.5 < (full - empty) / (history.num_bytes - empty_bytes) <= 1
    assert history.num_bytes <= 1 << 18
    assert peak - before <= 1.05 * (1 << 18)


def test_equal_tokens_of_two_tenants_are_different_tokens() -> None:
    tenants = Tenants()
    ours, theirs, adapted = tenants.hold("", "us"), tenants.hold("", "them"), tenants.hold("us", "")
    history = History(1 << 16, tenants)
    history.add(theirs, theirs.stored(range(50)))
    assert history.index.find(ours.stored(range(50))).length == 0
    assert history.index.find(adapted.stored(range(50))).length == 0
    assert history.index.find(theirs.stored(range(50))).length == 50
    assert array("q", [*ours.stored([7])]) != theirs.stored([7])
