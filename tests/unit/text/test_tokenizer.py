"""Encoding, and decoding against the `tokenizers` library."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from support.tokenizers import KINDS, SPECIALS, backend, small_tokenizer
from trierarch.builder.errors import EngineError
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.text.tokenizer import Tokenizer

TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            ["The capital", " of", "  ", "\n", "Paris", "😀", "👩‍👩‍👧", "東京", "é", "▁", *SPECIALS, "<tool>", "<0x41>"]
        ),
        max_size=12,
    ).map("".join),
)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_decoding_what_was_encoded(kind: str, text: str) -> None:
    tokenizer = small_tokenizer(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == backend(kind).decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids, skip_special_tokens=False) == backend(kind).decode(ids, skip_special_tokens=False)
    if kind == "byte_level":
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@given(ids=st.lists(st.integers(0, backend("byte_level").get_vocab_size() + 3), max_size=30))
def test_any_tokens_of_byte_level_bpe_decode_as_the_library_does(ids: list[int]) -> None:
    assert small_tokenizer("byte_level").decode(ids) == backend("byte_level").decode(ids)


@pytest.mark.parametrize("kind", KINDS[1:])
@given(data=st.data())
def test_any_tokens_of_sentencepiece_decode_as_the_library_does(kind: str, data: st.DataObject) -> None:
    size = backend(kind).get_vocab_size()
    pieces = st.integers(257, size + 3).map(lambda token_id: [token_id])
    spelled = st.characters(codec="utf-8", exclude_characters="▁")  # the one exception: see the test below
    characters = spelled.map(lambda character: [1 + byte for byte in character.encode()])
    ids = [token for piece in data.draw(st.lists(st.one_of(pieces, characters), max_size=15)) for token in piece]
    # A character that breaks off, with no other character in the same run of byte tokens.
    broken = data.draw(st.sampled_from([[], [257, 1 + 0xF0], [257, 1 + 0xE2, 1 + 0x82], [257, 1 + 0x80, 257]]))
    assert small_tokenizer(kind).decode(ids + broken) == backend(kind).decode(ids + broken)


def test_a_space_sign_spelled_in_bytes_is_a_character_of_the_text() -> None:
    ids = [1 + byte for byte in "▁".encode()]
    assert backend("metaspace").decode(ids) == ""  # the library takes it for the space that a piece begins with
    assert small_tokenizer("metaspace").decode(ids) == "▁"


def test_complete_characters_survive_a_wrong_byte_beside_them() -> None:
    ids = [1 + byte for byte in "é".encode() + b"\xff"]
    assert backend("byte_fallback").decode(ids) == "���"
    assert small_tokenizer("byte_fallback").decode(ids) == "é�"


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_text_are_single_tokens(kind: str) -> None:
    tokenizer = small_tokenizer(kind)
    ids = tokenizer.encode("<|im_start|>The<|im_end|>")
    assert ids[0] in tokenizer.special_ids
    assert ids[-1] in tokenizer.special_ids
    assert [tokenizer.token_text(ids[0]), tokenizer.token_text(ids[-1])] == ["<|im_start|>", "<|im_end|>"]
    assert tokenizer.decode(ids) == "The"
    assert tokenizer.token_text(None) == tokenizer.token_text(10**6) == ""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["Paris", " Paris", "  x", "😀", "a b"])
def test_inner_text_gets_no_space_of_its_own(kind: str, text: str) -> None:
    tokenizer = small_tokenizer(kind)
    before = tokenizer.encode("x")
    assert tokenizer.decode([*before, *tokenizer.encode_inner(text, "stop")]) == "x" + text


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", b"\xff", "é".encode()[:1]])
def test_what_is_not_utf8_is_the_callers_error(text: str | bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"text_input is .*: is not valid UTF-8"):
        small_tokenizer("byte_level").encode(text, field="text_input")


def test_bytes_are_taken_as_utf8() -> None:
    tokenizer = small_tokenizer("byte_level")
    assert tokenizer.encode("東京".encode()) == tokenizer.encode("東京")


def test_threads_share_a_tokenizer() -> None:
    tokenizer = Tokenizer(Backend.from_str(backend("byte_level").to_str()))
    texts = [f"The capital {number} of 東京" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: tokenizer.decode(tokenizer.encode(text)), texts)) == texts


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path) -> None:
    strange = Backend.from_str(backend("byte_level").to_str())
    strange.enable_truncation(2)
    strange.enable_padding(length=50)
    strange.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("the capital of France") == small_tokenizer("byte_level").encode("the capital of France")
    assert tokenizer.vocab_size == backend("byte_level").get_vocab_size()


def test_engines_without_a_usable_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(EngineError, match="cannot be read"):
        Tokenizer.load(tmp_path)
    for decoder in (None, decoders.WordPiece(), decoders.Sequence([decoders.Fuse(), decoders.Strip("x", 0, 1)])):
        foreign = Backend(models.BPE())
        foreign.decoder = decoder  # type: ignore[assignment]  # the stub forgets None
        with pytest.raises(EngineError, match="neither byte-level BPE nor SentencePiece"):
            Tokenizer(foreign)
