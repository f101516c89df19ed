"""The text that quantization is measured on, and its windows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from support.checkpoints import BOS, VOCAB_SIZE, small_tokenizer
from trierarch.builder.checkpoint import TokenizerFiles
from trierarch.builder.errors import CheckpointError, ConfigError
from trierarch.builder.evaluation_text import BUNDLED, MIN_TOKENS, WINDOW_TOKENS, read_evaluation_text
from trierarch.builder.tokenizer import finish_tokenizer


def tokenizer_files(add_bos: bool = False) -> TokenizerFiles:
    tokenizer = small_tokenizer()
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", BOS)]
        )
    tokenizer.enable_truncation(10)  # some checkpoints ship such settings: the text is not to be cut by them
    tokenizer.enable_padding(length=20)
    return finish_tokenizer(tokenizer.to_str().encode(), None, VOCAB_SIZE, BOS, (), None)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 700), st.booleans())
def test_windows_hold_the_text_and_no_window_is_too_long(max_seq_len: int, add_bos: bool) -> None:
    files = tokenizer_files(add_bos)
    assert files.tokens.add_bos is add_bos
    prefix = (BOS,) if add_bos else ()
    text = read_evaluation_text(None, files, VOCAB_SIZE, max_seq_len)
    tokenizer = small_tokenizer()
    ids = tokenizer.encode(BUNDLED.read_text(encoding="utf-8")).ids
    read = [token for window in text.windows for token in window[len(prefix) :]]
    assert ids[: len(read)] == read
    assert len(ids) - len(read) <= 1  # a lone last token has nothing to predict it from
    assert max(map(len, text.windows)) == min(WINDOW_TOKENS, max_seq_len)
    assert all(window[: len(prefix)] == prefix and len(window) > 1 for window in text.windows)
    assert text.num_tokens == len(text.targets) == sum(len(window) - 1 for window in text.windows)
    if add_bos:
        assert text.targets.tolist() == read


def test_the_bundled_text_is_long_enough_and_plain() -> None:
    content = BUNDLED.read_text(encoding="utf-8")
    assert 1500 <= len(content.split()) <= 2500
    assert content.isascii()  # every tokenizer knows every character
    assert read_evaluation_text(None, tokenizer_files(), VOCAB_SIZE, 8192).name == BUNDLED.name


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Straße — 東京\n" * 40, encoding="utf-8")
    text = read_evaluation_text(path, tokenizer_files(), VOCAB_SIZE, 8192)
    assert text.name == "mine.txt"
    assert text.num_tokens >= MIN_TOKENS


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    files = tokenizer_files()
    for name, content, message in (
        ("short.txt", b"Too short.", r"accuracy_text is '.*short.txt': \d tokens .* give a text of 256 or more"),
        ("empty.txt", b"", r"empty.txt': 0 tokens"),
        ("latin.txt", b"caf\xe9 " * 400, r"latin.txt': byte 3 is not UTF-8; give"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            read_evaluation_text(tmp_path / name, files, VOCAB_SIZE, 8192)
    for path in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(ConfigError, match=r"it cannot be read \(.*\); give a text file"):
            read_evaluation_text(path, files, VOCAB_SIZE, 8192)


def test_a_window_of_one_token_predicts_nothing() -> None:
    with pytest.raises(ConfigError, match=r"0 tokens to predict in windows of at most 1"):
        read_evaluation_text(None, tokenizer_files(), VOCAB_SIZE, 1)


def test_tokens_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"the tokenizer yields token \d+, the model has 200"):
        read_evaluation_text(None, tokenizer_files(), 200, 8192)
