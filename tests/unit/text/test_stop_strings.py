"""Stop strings in a stream against the obvious search in the whole text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.text.stop_strings import MAX_STOP_LENGTH, MAX_STOP_STRINGS, StopStrings

LETTERS = "abc"
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=6), max_size=4)


def find(stop: list[str], text: str) -> tuple[str, str | None]:
    """The text before the first string to be complete, and that string."""
    ends = [(text.find(string) + len(string), -len(string), string) for string in stop if string in text]
    if not ends:
        return text, None
    end, _, string = min(ends)
    return text[: end - len(string)], string


@given(stop=STOPS, text=st.text(LETTERS, max_size=60), cuts=st.lists(st.integers(0, 60), max_size=20))
@example(stop=["abab", "ba"], text="aabab", cuts=[3])
@example(stop=["aab"], text="aaab", cuts=[1, 2, 3])
@example(stop=["abcd", "bc"], text="abcd", cuts=[1, 2, 3])
def test_as_in_the_whole_text(stop: list[str], text: str, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    stop_strings, shown, matched = StopStrings(stop), "", None
    expected, expected_match = find(stop, text)
    for start, end in itertools.pairwise(edges):
        safe, matched = stop_strings.push(text[start:end])
        shown += safe
        # Never a part of what may yet become a stop string, never more held back than that.
        held = text[len(shown) : end]
        if matched is None:
            assert any(string.startswith(held) and string != held for string in stop) or not held
        if matched is not None:
            break
    if matched is None:
        shown += stop_strings.flush()
    assert (shown, matched) == (expected, expected_match)


def test_nothing_is_held_back_without_stop_strings() -> None:
    stop_strings = StopStrings(())
    assert stop_strings.push("some text") == ("some text", None)
    assert stop_strings.flush() == ""


def test_text_behind_a_match_is_dropped() -> None:
    stop_strings = StopStrings(["\n\nUser:", "###"])
    assert stop_strings.push("Hello\n") == ("Hello", None)
    assert stop_strings.push("\nUse") == ("", None)
    assert stop_strings.push("d. #") == ("\n\nUsed. ", None)
    assert stop_strings.push("## and so on") == ("", "###")


@pytest.mark.parametrize(
    "stop", [[""], ["x" * (MAX_STOP_LENGTH + 1)], [str(number) for number in range(MAX_STOP_STRINGS + 1)]]
)
def test_bounds(stop: list[str]) -> None:
    with pytest.raises(InvalidRequest, match=r"^stop is "):
        StopStrings(stop)
    StopStrings(["x" * MAX_STOP_LENGTH, *(str(number) for number in range(MAX_STOP_STRINGS - 1))])
