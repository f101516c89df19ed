from __future__ import annotations

from array import array
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.drafting import longest_matches, most_frequent
from trierarch.python_backend.speculation import suffix_index
from trierarch.python_backend.speculation.suffix_index import GAP, MAX_DEPTH, MAX_OCCURRENCES, SuffixIndex

texts = st.lists(st.integers(0, 2), max_size=40) | st.lists(st.integers(0, 9), max_size=40)
heads = st.sampled_from([1, 4, 1024])
"""With one chain for everything, nothing but comparing tokens can be right."""
GRAMS = (8, 2)
FOREVER = 10**6


@pytest.fixture
def every_occurrence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suffix_index, "MAX_OCCURRENCES", FOREVER)


def index_of(text: list[int], num_heads: int = 1024) -> SuffixIndex:
    index = SuffixIndex(GRAMS, num_heads)
    index.append(array("q", text))
    return index


def ends_in(text: list[int], found: tuple[int, ...]) -> list[int]:
    """Slot 0 is a gap, so slots are one more than indices."""
    assert all(0 < slot <= len(text) for slot in found)
    return [slot - 1 for slot in found]


@pytest.mark.usefixtures("every_occurrence")
@given(text=texts, tail=texts, num_heads=heads)
@settings(deadline=None, max_examples=60)
def test_finds_what_the_slow_way_finds(text: list[int], tail: list[int], num_heads: int) -> None:
    match = index_of(text, num_heads).find(array("q", tail))
    length, places = longest_matches(tail, [text], GRAMS[-1])
    assert match.length == length
    assert ends_in(text, match.ends) == [end for _, end in reversed(places)]


@pytest.mark.usefixtures("every_occurrence")
@given(text=texts, num_heads=heads)
@settings(deadline=None, max_examples=60)
def test_finds_a_text_again_in_all_of_it_but_where_it_ends(text: list[int], num_heads: int) -> None:
    match = index_of(text, num_heads).find_again(array("q", text[-MAX_DEPTH:]))
    length, places = longest_matches(text[-MAX_DEPTH:], [text[:-1]], GRAMS[-1])
    assert match.length == length
    assert ends_in(text, match.ends) == [end for _, end in reversed(places)]


@pytest.mark.usefixtures("every_occurrence")
@given(text=texts, tail=texts, beyond=st.integers(0, 12), num_heads=heads)
@settings(deadline=None, max_examples=60)
def test_what_is_no_longer_than_asked_for_is_not_found(
    text: list[int], tail: list[int], beyond: int, num_heads: int
) -> None:
    index = index_of(text, num_heads)
    all_matches, matches = index.find(array("q", tail)), index.find(array("q", tail), beyond)
    assert matches == all_matches if all_matches.length > beyond else matches.length == 0


@given(text=texts, cuts=st.lists(st.integers(0, 60), max_size=10), num_heads=heads)
@settings(deadline=None, max_examples=60)
def test_grown_in_pieces_is_as_read_at_once(text: list[int], cuts: list[int], num_heads: int) -> None:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    index = SuffixIndex(GRAMS, num_heads)
    for start, end in pairwise(bounds):
        if end - start == 1:
            index.append_one(text[start])
        else:
            index.append(array("q", text[start:end]))
    tail = array("q", text[-MAX_DEPTH:])
    assert index.find_again(tail) == index_of(text, num_heads).find_again(tail)


@given(text=texts, tail=texts, num_heads=heads)
@settings(deadline=None, max_examples=60)
def test_of_many_occurrences_the_latest_are_looked_at_and_each_is_real(
    text: list[int], tail: list[int], num_heads: int
) -> None:
    match = index_of(text, num_heads).find(array("q", tail))
    ends = ends_in(text, match.ends)
    assert len(ends) <= MAX_OCCURRENCES
    assert ends == sorted(set(ends), reverse=True)
    assert all(text[end + 1 - match.length : end + 1] == tail[-match.length :] for end in ends)


def test_a_long_match_is_found_behind_any_number_of_short_ones() -> None:
    sought = list(range(100, 100 + GRAMS[0]))
    text = [*sought, 1] + [0, *sought[-2:]] * 50
    assert index_of(text).find(array("q", sought)).ends == (GRAMS[0],)


@given(text=texts, tail=texts, limit=st.integers(1, 20), least=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(deadline=None, max_examples=60)
def test_follows_the_most_frequent_continuation(text: list[int], tail: list[int], limit: int, least: float) -> None:
    index = index_of(text)
    match = index.find(array("q", tail))
    continuations = [text[end + 1 :] for end in ends_in(text, match.ends)]
    followed, share = index.follow(match, limit, least)
    assert followed == most_frequent(continuations, limit, least)
    if followed:
        known = [each for each in continuations if each]
        assert share == sum(each[0] == followed[0] for each in known) / len(known)


def test_a_continuation_ends_at_a_gap() -> None:
    index = SuffixIndex(GRAMS, 16, num_slots=16)
    index.write(0, array("q", [GAP, 1, 2, 3, 4]))
    index.write(5, array("q", [GAP, 5, 6, 7]))
    assert index.follow(index.find(array("q", [1, 2])), 10, 0.0)[0] == [3, 4]
    assert index.find(array("q", [4, 5])).length == 0
