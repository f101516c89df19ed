"""Tokenizers rebuilt from GGUF metadata against the ones that they were taken from."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from transformers import Qwen2Tokenizer

from support.checkpoints import small_tokenizer
from support.demo import demo_checkpoint
from support.gguf_files import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, byte_level_keys
from trierarch.builder.errors import CheckpointError
from trierarch.builder.gguf_checkpoint import GgufCheckpoint
from trierarch.builder.gguf_tokenizer import read_gguf_tokenizer

GRAVITY = (
    "1 9690 198 2683 359 253 5356 5646 11173 3365 3511 308 34519 28 7018 411 407 19712 8182 2 198 "
    "1 4093 198 1780 314 9354 47 2 198 1 520 9531 198"
)
TEXTS = st.text(st.one_of(st.sampled_from("aAzZ019 .,'\n\t_-éß中あ🙂\u00a0\u0301ǅ"), st.characters(codec="utf-8")))


def rebuild(metadata: dict[str, Any], vocab_size: int = 320) -> Tokenizer:
    return Tokenizer.from_buffer(read_gguf_tokenizer(metadata, vocab_size).tokenizer_json)


def test_the_demo_chat_prompt_tokenises_as_published() -> None:
    files = GgufCheckpoint(demo_checkpoint()).tokenizer(49_152)
    assert files.chat_template is not None
    messages = [{"role": "user", "content": "What is gravity?"}]
    prompt = jinja2.Template(files.chat_template).render(messages=messages, add_generation_prompt=True)
    tokenizer = Tokenizer.from_buffer(files.tokenizer_json)
    encoded = tokenizer.encode(prompt).ids
    assert encoded == [int(token) for token in GRAVITY.split()]
    assert tokenizer.decode(encoded, skip_special_tokens=False) == prompt
    assert (files.tokens.bos, files.tokens.eos, files.tokens.pad, files.tokens.add_bos) == (1, (2,), 2, False)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_byte_level_bpe_is_the_original(text: str) -> None:
    rebuilt = rebuild(byte_level_keys(320))
    assert rebuilt.encode(text).ids == small_tokenizer().encode(text).ids
    assert rebuilt.decode(rebuilt.encode(text).ids) == text


def reference_splits() -> dict[str, Any]:
    digits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return {
        "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "smollm": pre_tokenizers.Sequence(digits),
        "qwen2": Qwen2Tokenizer().backend_tokenizer.pre_tokenizer,
    }


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2"])
def test_text_is_split_as_the_models_own_tokenizer_splits_it(pre: str) -> None:
    reference = reference_splits()[pre]
    split = rebuild(byte_level_keys(320) | {"tokenizer.ggml.pre": pre}).pre_tokenizer

    @settings(max_examples=200, deadline=None)
    @given(TEXTS)
    def check(text: str) -> None:
        if pre == "smollm" and any(char.isnumeric() and not char.isdecimal() for char in text):
            return  # llama.cpp's pattern takes every \p{N} for a digit, the original only some
        assert split.pre_tokenize_str(text) == reference.pre_tokenize_str(text)

    check()


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("llama-bpe", ["It", "'LL", " cost", " ", "123", "45", "\n\n", "  ", " ok", "?!\n"]),
        ("smaug-bpe", ["It", "'LL", " cost", " ", "123", "45", "\n\n", "  ", " ok", "?!\n"]),
        ("qwen2", ["It", "'LL", " cost", " ", "1", "2", "3", "4", "5", "\n\n", "  ", " ok", "?!\n"]),
        ("gpt-4o", ["It'LL", " cost", " ", "123", "45", "\n\n", "  ", " ok", "?!\n"]),
        ("tekken", ["It", "'LL", " cost", " ", "1", "2", "3", "4", "5", "\n\n", "  ", " ok", "?!\n"]),
        ("default", ["It", "'", "LL", " cost", " ", "123", "45", "\n\n  ", " ok", "?!", "\n"]),
    ],
)
def test_each_kind_splits_by_its_own_pattern(pre: str, pieces: list[str]) -> None:
    text = "It'LL cost 12345\n\n   ok?!\n"
    split = rebuild(byte_level_keys(320) | {"tokenizer.ggml.pre": pre}).pre_tokenizer
    assert [text[begin:end] for _, (begin, end) in split.pre_tokenize_str(text)] == pieces


@cache
def sentencepiece_metadata(add_dummy_prefix: bool, directory: Path) -> tuple[Any, dict[str, Any]]:
    corpus = directory / "corpus.txt"
    words = "the wind sails over quick brown foxes jumping zebras with lazy hymns of cold iron ships and dark marble"
    corpus.write_text("\n".join(f"{words[index:]} {words[:index]}" for index in range(0, len(words), 3)), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(directory / f"spm{add_dummy_prefix}"),
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=add_dummy_prefix,
        user_defined_symbols=["<turn>"],
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(directory / f"spm{add_dummy_prefix}.model"))
    types = []
    for index in range(model.get_piece_size()):
        kind = BYTE if model.is_byte(index) else CONTROL if model.is_control(index) else NORMAL
        kind = UNKNOWN if model.is_unknown(index) else kind
        types.append(USER_DEFINED if model.id_to_piece(index) == "<turn>" else kind)
    return model, {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(index) for index in range(len(types))],
        "tokenizer.ggml.scores": [model.get_score(index) for index in range(len(types))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": add_dummy_prefix,
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
    }


@pytest.mark.parametrize("add_space_prefix", [True, False])
def test_sentencepiece_is_the_original(add_space_prefix: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    model, metadata = sentencepiece_metadata(add_space_prefix, tmp_path_factory.getbasetemp())
    tokenizer = rebuild(metadata, 420)
    words = st.sampled_from(
        ["the", "wind", "sails", "zebras", "ships", "marble", "xyz", "42", "é", "中", "🙂", "-", ".", "\n"]
    )

    @settings(max_examples=150, deadline=None)
    @given(st.lists(words, min_size=1), st.integers(1, 3))
    def check(parts: list[str], spaces: int) -> None:
        text = (" " * spaces).join(parts)
        ids = tokenizer.encode(text).ids
        assert ids == [model.bos_id(), *model.encode(text)]
        assert tokenizer.decode(ids) == text

    check()


def test_sentencepiece_takes_special_tokens_whole(tmp_path_factory: pytest.TempPathFactory) -> None:
    _, metadata = sentencepiece_metadata(True, tmp_path_factory.getbasetemp())
    tokens = metadata["tokenizer.ggml.tokens"]
    tokenizer = rebuild(metadata, 420)
    assert tokens.index("<turn>") in tokenizer.encode("ships<turn>").ids
    assert tokenizer.encode("</s>", add_special_tokens=False).ids == [tokens.index("</s>")]
    assert tokenizer.decode([1, 2]) == ""


@pytest.mark.parametrize(
    ("change", "add_bos"),
    [
        ({}, False),
        ({"tokenizer.ggml.add_bos_token": True}, True),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": None}, True),
        ({"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.add_bos_token": None}, False),
    ],
)
def test_bos_is_prepended_where_the_file_or_its_kind_says(change: dict[str, Any], add_bos: bool) -> None:
    merged = byte_level_keys(320) | change
    metadata = {key: value for key, value in merged.items() if value is not None}
    files = read_gguf_tokenizer(metadata, 320)
    assert files.tokens.add_bos is add_bos
    assert (Tokenizer.from_buffer(files.tokenizer_json).encode("hi").ids[0] == 256) is add_bos


def test_the_end_of_a_turn_ends_the_output() -> None:
    metadata = byte_level_keys(320)
    metadata["tokenizer.ggml.tokens"][300] = "<|im_end|>"
    metadata["tokenizer.ggml.token_type"][300] = CONTROL
    metadata["tokenizer.ggml.eot_token_id"] = 258
    assert read_gguf_tokenizer(metadata, 320).tokens.eos == (257, 258, 300)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, r"tokenizer.ggml.model is 'rwkv': known are 'gpt2'"),
        ({"tokenizer.ggml.pre": "kimi-k2"}, r"tokenizer.ggml.pre is 'kimi-k2': known are default, gpt-2"),
        ({"tokenizer.ggml.tokens": None}, r"tokenizer.ggml.tokens is None: Input should be a valid list"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, r"repeats a token"),
        ({"tokenizer.ggml.token_type": [1]}, r"differs in length from token_type"),
        ({"tokenizer.ggml.merges": ["no such"]}, r"merges contradicts the tokens"),
        ({"tokenizer.ggml.merges": ["alone"]}, r"merges contradicts the tokens"),
        ({"tokenizer.ggml.bos_token_id": "one"}, r"tokenizer.ggml.bos_token_id is 'one': Input should be a valid int"),
        ({"tokenizer.ggml.model": "llama"}, r"tokenizer.ggml.scores is missing"),
        ({"tokenizer.chat_template": "x" * (1 << 20) + "x"}, r"the chat template has 1048577 bytes: at most 1048576"),
    ],
)
def test_bad_metadata_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_gguf_tokenizer(byte_level_keys(320) | change, 320)


def test_rebuilding_gives_the_same_bytes() -> None:
    one, other = (read_gguf_tokenizer(byte_level_keys(320), 320).tokenizer_json for _ in range(2))
    assert one == other
    assert json.loads(one)["model"]["type"] == "BPE"
