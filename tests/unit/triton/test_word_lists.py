"""The contract's packed word lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.triton.word_lists import Words, decode_word_list, encode_word_lists

WORDS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple), max_size=4).map(tuple)


def test_the_recorded_layout() -> None:
    packed = encode_word_lists([((5, 6), (9,)), ((7,),)])
    assert packed.tolist() == [[[5, 6, 9], [2, 3, -1]], [[7, 0, 0], [1, -1, -1]]]
    assert packed.dtype == np.int32


def test_no_words_are_zero_columns() -> None:
    assert encode_word_lists([(), ()]).shape == (2, 2, 0)


@given(st.lists(WORDS, min_size=1, max_size=3))
def test_what_is_packed_comes_out(rows: list[Words]) -> None:
    assert [decode_word_list("words", row) for row in encode_word_lists(rows)] == rows


@pytest.mark.parametrize("offsets", [[2, 1], [4, -1], [0, 2], [-2, 1], [1, 1]])
def test_offsets_must_rise_within_the_row(offsets: list[int]) -> None:
    with pytest.raises(InvalidRequest, match=r"^bad_words_list"):
        decode_word_list("bad_words_list", np.array([[1, 2], offsets], np.int32))
