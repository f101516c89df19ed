"""The pieces of a stream make up the text of the whole, and none of them is broken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.tokenizers import KINDS, SPECIALS, small_tokenizer
from trierarch.python_backend.text.detokenizer import Detokenizer

TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(["The", " capital", "  ", "\n", "😀", "👩‍👩‍👧", "東京は", "naïve", *SPECIALS, "<tool>"]),
        max_size=12,
    ).map("".join),
)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), skip_special_tokens=st.booleans())
def test_pieces_make_up_the_whole(kind: str, data: st.DataObject, skip_special_tokens: bool) -> None:
    tokenizer = small_tokenizer(kind)
    any_tokens = st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30)
    ids = data.draw(st.one_of(TEXTS.map(tokenizer.encode), any_tokens))
    detokenizer = Detokenizer(tokenizer, skip_special_tokens)
    pieces, place = [], 0
    while place < len(ids):
        size = data.draw(st.integers(1, 3))
        pieces.append(detokenizer.push(ids[place : place + size]))
        place += size
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids, skip_special_tokens)


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=TEXTS, output=TEXTS)
def test_the_output_goes_on_where_the_prompt_ends(kind: str, prompt: str, output: str) -> None:
    tokenizer = small_tokenizer(kind)
    prompt_ids, output_ids = tokenizer.encode(prompt), tokenizer.encode(output)
    detokenizer = Detokenizer(tokenizer, prompt_token_ids=prompt_ids)
    text = detokenizer.push(output_ids) + detokenizer.flush()
    assert tokenizer.decode(prompt_ids) + text == tokenizer.decode([*prompt_ids, *output_ids])


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="�"), max_size=30))
def test_every_piece_is_whole_characters(kind: str, text: str) -> None:
    tokenizer = small_tokenizer(kind)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([token_id]) for token_id in tokenizer.encode(text)]
    assert detokenizer.flush() == ""
    assert not any("�" in piece for piece in pieces)


def test_an_emoji_comes_with_its_last_byte() -> None:
    for kind in KINDS:
        tokenizer = small_tokenizer(kind)
        detokenizer = Detokenizer(tokenizer, prompt_token_ids=tokenizer.encode("x"))
        pieces = [detokenizer.push([token_id]) for token_id in tokenizer.encode_inner("😀", "text")]
        assert pieces[-1] == "😀"
        assert len(pieces) == 4
        assert not any(pieces[:-1])


def test_an_output_that_ends_amid_a_character_ends_as_decode_ends_it() -> None:
    for kind in KINDS:
        tokenizer = small_tokenizer(kind)
        ids = tokenizer.encode("Rome 😀")[:-1]
        detokenizer = Detokenizer(tokenizer)
        assert detokenizer.push(ids) == "Rome "
        assert "Rome " + detokenizer.flush() == tokenizer.decode(ids) != "Rome "


def test_a_character_may_begin_in_the_prompt() -> None:
    for kind in KINDS:
        tokenizer = small_tokenizer(kind)
        emoji = tokenizer.encode_inner("😀", "text")
        prompt = [*tokenizer.encode("Rome"), *emoji[:2]]
        detokenizer = Detokenizer(tokenizer, prompt_token_ids=prompt)
        assert [detokenizer.push([token_id]) for token_id in emoji[2:]] == ["", "😀"]
        assert Detokenizer(tokenizer, prompt_token_ids=prompt).flush() == ""
        other = Detokenizer(tokenizer, prompt_token_ids=prompt)
        assert other.push(tokenizer.encode_inner("x", "text")) + other.flush() == "x"


def test_a_prompt_of_special_tokens_alone_is_no_text() -> None:
    for kind in KINDS:
        tokenizer = small_tokenizer(kind)
        specials = tokenizer.encode("".join(SPECIALS * 2))
        detokenizer = Detokenizer(tokenizer, prompt_token_ids=[t for t in specials if t in tokenizer.special_ids])
        assert detokenizer.push(tokenizer.encode("Rome")) == "Rome"
