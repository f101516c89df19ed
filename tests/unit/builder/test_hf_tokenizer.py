"""Tokenizers of Hugging Face directories, and the special tokens that their many files name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from support.checkpoints import BOS, CHAT_TEMPLATE, EOS, PAD, write_tokenizer
from trierarch.builder.checkpoint import TokenizerFiles
from trierarch.builder.errors import CheckpointError
from trierarch.builder.hf_tokenizer import read_tokenizer
from trierarch.builder.manifest import Tokens


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def write(directory: Path, name: str, value: Any) -> None:
    (directory / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def read(directory: Path, **config: Any) -> TokenizerFiles:
    return read_tokenizer(directory, config, 320)


def test_the_file_is_copied_byte_for_byte(directory: Path) -> None:
    files = read(directory)
    assert files.tokenizer_json == (directory / "tokenizer.json").read_bytes()
    assert files.chat_template == CHAT_TEMPLATE
    assert files.tokens == Tokens(bos=BOS, eos=(EOS,), pad=PAD, add_bos=False)


def test_every_file_that_names_an_end_token_counts(directory: Path) -> None:
    write(directory, "generation_config.json", {"eos_token_id": [10, 11], "pad_token_id": 12})
    tokens = read(directory, eos_token_id=[11, 13], bos_token_id=14, text_config={"eos_token_id": 15}).tokens
    assert tokens == Tokens(bos=14, eos=(10, 11, 13, 15, EOS), pad=12, add_bos=False)


def test_ids_that_the_model_cannot_produce_are_left_out(directory: Path) -> None:
    write(directory, "tokenizer_config.json", {"bos_token": "<|nowhere|>"})
    tokens = read(directory, eos_token_id=[-1, 320, 7], bos_token_id=1000, pad_token_id=None).tokens
    assert tokens == Tokens(bos=None, eos=(7,), pad=7, add_bos=False)
    assert read(directory).tokens == Tokens(bos=None, eos=(), pad=0, add_bos=False)


def test_special_tokens_may_be_objects_and_bos_may_be_prepended(directory: Path) -> None:
    write(
        directory, "tokenizer_config.json", {"bos_token": {"content": "<|bos|>"}, "eos_token": {"content": "<|eos|>"}}
    )
    raw = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": pieces,
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [BOS], "tokens": ["<|bos|>"]}},
    }
    write(directory, "tokenizer.json", raw)
    assert read(directory).tokens == Tokens(bos=BOS, eos=(EOS,), pad=EOS, add_bos=True)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("chat_template.jinja", "file wins", "file wins"),
        ("chat_template.json", {"chat_template": "json"}, "json"),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]},
            "d",
        ),
        ("tokenizer_config.json", {"chat_template": ""}, None),
        ("tokenizer_config.json", {}, None),
    ],
)
def test_chat_templates_are_found_where_they_may_be(
    name: str, content: Any, expected: str | None, directory: Path
) -> None:
    if name != "chat_template.jinja":
        write(directory, "tokenizer_config.json", {})
    write(directory, name, content)
    assert read(directory).chat_template == expected


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_huge_chat_template_is_refused(name: str, directory: Path) -> None:
    template = "{# " + "x" * (1 << 20) + " #}"
    write(directory, name, template if name.endswith(".jinja") else {"chat_template": template})
    with pytest.raises(CheckpointError, match=r"has 1048582 bytes: at most 1048576 are accepted"):
        read(directory)


def test_a_chat_template_that_is_no_text_is_named(directory: Path) -> None:
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"chat_template.jinja is not UTF-8"):
        read(directory)


def train(directory: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    (directory / "corpus.txt").write_text("the wind sails over cold iron ships\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        **{
            "input": str(directory / "corpus.txt"),
            "model_prefix": str(directory / "tokenizer"),
            "model_type": "bpe",
            "vocab_size": 300,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "minloglevel": 2,
            **options,
        }
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


@pytest.mark.parametrize("add_bos", [True, False])
def test_a_sentencepiece_model_is_converted(add_bos: bool, tmp_path: Path) -> None:
    model = train(tmp_path)
    added = {"300": {"content": "<|end|>", "special": True}}
    own = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": add_bos, "added_tokens_decoder": added}
    write(tmp_path, "tokenizer_config.json", own)
    write(tmp_path, "added_tokens.json", {"<|end|>": 300, "<|user|>": 301})
    files = read_tokenizer(tmp_path, {}, 302)
    encoded = Tokenizer.from_buffer(files.tokenizer_json).encode("cold wind<|end|><|user|>").ids
    assert encoded == [1] * add_bos + [*model.encode("cold wind"), 300, 301]
    assert files.tokens == Tokens(bos=1, eos=(2,), pad=2, add_bos=add_bos)


def test_an_added_token_after_a_gap_is_named(tmp_path: Path) -> None:
    train(tmp_path)
    write(tmp_path, "added_tokens.json", {"<|end|>": 305})
    with pytest.raises(CheckpointError, match=r"the added token '<\|end\|>' has id 305, which leaves a gap"):
        read_tokenizer(tmp_path, {}, 310)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram", "vocab_size": 277},
        {"user_defined_symbols": ["<turn>"]},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
    ],
)
def test_what_a_conversion_would_change_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    train(tmp_path, **options)
    with pytest.raises(CheckpointError, match=r"tokenizer.model is not a plain BPE model"):
        read_tokenizer(tmp_path, {}, 300)


def test_a_broken_sentencepiece_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"tokenizer.model cannot be read; download"):
        read_tokenizer(tmp_path, {}, 300)
