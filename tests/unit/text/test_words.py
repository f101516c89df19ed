"""Words as tokens, with a space before them and without."""

from __future__ import annotations

import math

import pytest

from support.tokenizers import KINDS, small_tokenizer
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.text.words import MAX_WORDS, bias_of_words, spellings


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ["Paris", " Paris"])
def test_both_spellings_are_there(kind: str, word: str) -> None:
    tokenizer = small_tokenizer(kind)
    before = tokenizer.encode("x")
    texts = [tokenizer.decode([*before, *ids]) for ids in spellings(tokenizer, [word], "bad_words")]
    assert texts == ["xParis", "x Paris"]


def test_a_word_given_twice_counts_once() -> None:
    tokenizer = small_tokenizer("byte_level")
    assert spellings(tokenizer, ["Rome", " Rome"], "bad_words") == spellings(tokenizer, ["Rome"], "bad_words")


def test_bias_is_added_to_each_token_of_the_word_once() -> None:
    tokenizer = small_tokenizer("byte_level")
    tokens = {token_id for ids in spellings(tokenizer, ["Paris"], "w") for token_id in ids}
    some = min(tokens)
    assert bias_of_words(tokenizer, [("Paris", 2.0)], {some: 0.5}) == {
        token_id: 2.0 + (0.5 if token_id == some else 0.0) for token_id in tokens
    }
    banned = bias_of_words(tokenizer, [("Paris", -math.inf), ("Paris", 1.0)], {})
    assert set(banned.values()) == {-math.inf}


@pytest.mark.parametrize("words", [[""], [" "], ["ok", ""], ["\ud800"], ["x"] * (MAX_WORDS + 1)])
def test_words_that_are_refused(words: list[str]) -> None:
    with pytest.raises(InvalidRequest, match=r"^bad_words is"):
        spellings(small_tokenizer("byte_level"), words, "bad_words")
