"""The arrays of preprocessing and postprocessing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.random_engine import tiny_architecture, tiny_manifest
from support.tokenizers import small_tokenizer
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.triton.inputs import Array
from trierarch.python_backend.triton.tokenization import postprocess, preprocess

TOKENIZER = small_tokenizer("byte_level")
MANIFEST = tiny_manifest(tiny_architecture(vocab_size=TOKENIZER.vocab_size))


def strings(*rows: list[str]) -> Array:
    return np.array([[item.encode() for item in row] for row in rows], np.object_)


def before(**arrays: Array) -> dict[str, Any]:
    sent = {"QUERY": strings(["The capital"]), "REQUEST_OUTPUT_LEN": np.array([[8]], np.int32)} | arrays
    return dict(preprocess(sent, TOKENIZER, MANIFEST, add_special_tokens=True))


def test_every_output_is_always_there() -> None:
    outputs = before()
    assert outputs["INPUT_ID"].tolist() == [TOKENIZER.encode("The capital")]
    assert outputs["REQUEST_INPUT_LEN"].tolist() == [[len(TOKENIZER.encode("The capital"))]]
    assert outputs["DECODER_INPUT_ID"].tolist() == [[0]]
    assert outputs["REQUEST_OUTPUT_LEN"].tolist() == [[8]]
    assert outputs["OUT_END_ID"].tolist() == [[1]]
    assert outputs["OUT_PAD_ID"].tolist() == [[0]]
    assert outputs["BAD_WORDS_IDS"].shape == outputs["STOP_WORDS_IDS"].shape == (1, 2, 0)
    assert outputs["EMBEDDING_BIAS"].shape == (1, 0)


def test_rows_are_padded_on_the_right() -> None:
    outputs = before(
        QUERY=strings(["The"], ["The capital of France"]),
        REQUEST_OUTPUT_LEN=np.array([[1], [2]], np.int32),
        PAD_ID=np.array([[7], [7]], np.int32),
    )
    short, long = TOKENIZER.encode("The"), TOKENIZER.encode("The capital of France")
    assert outputs["INPUT_ID"].tolist() == [short + [7] * (len(long) - len(short)), long]
    assert outputs["REQUEST_INPUT_LEN"].tolist() == [[len(short)], [len(long)]]


def test_words_and_biases() -> None:
    outputs = before(
        STOP_WORDS_DICT=strings(["Paris", ""]),
        EMBEDDING_BIAS_WORDS=strings(["Rome"]),
        EMBEDDING_BIAS_WEIGHTS=np.array([[2.5]], np.float32),
    )
    stop = TOKENIZER.encode("Paris", add_special_tokens=False)
    assert outputs["STOP_WORDS_IDS"][0, 0].tolist() == stop
    assert outputs["STOP_WORDS_IDS"][0, 1, 0] == len(stop)
    biased = np.flatnonzero(outputs["EMBEDDING_BIAS"][0]).tolist()
    assert biased == sorted(set(TOKENIZER.encode("Rome", add_special_tokens=False)))


def test_text_comes_back_in_an_array_of_rank_one() -> None:
    ids = TOKENIZER.encode("The capital of France")
    tokens = np.array([[[*ids, -1]], [[*ids, -1]]], np.int32)  # padded with -1, as the contract does
    lengths = np.array([[len(ids)], [2]], np.int32)
    ((name, texts),) = postprocess({"TOKENS_BATCH": tokens, "SEQUENCE_LENGTH": lengths}, TOKENIZER, True)
    assert name == "OUTPUT"
    assert texts.shape == (2,)
    assert [text.decode() for text in texts] == ["The capital of France", TOKENIZER.decode(ids[:2])]


@pytest.mark.parametrize(
    ("tokens", "lengths", "says"),
    [
        ([[[1, 2]]], [[3]], "SEQUENCE_LENGTH is 3: must be between 0 and 2"),
        ([[[1, 99999]]], [[2]], "TOKENS_BATCH is 99999"),
        ([[1, 2]], [[2]], r"TOKENS_BATCH is \(2,\): must hold integers, of shape \(batch, beams, length\)"),
        ([[[1], [2]]], [[1]], "SEQUENCE_LENGTH is .*needs one length a beam: 2"),
    ],
)
def test_bad_tokens_are_named(tokens: list[Any], lengths: list[list[int]], says: str) -> None:
    arrays: dict[str, Array] = {
        "TOKENS_BATCH": np.array(tokens, np.int32),
        "SEQUENCE_LENGTH": np.array(lengths, np.int32),
    }
    with pytest.raises(InvalidRequest, match=says):
        postprocess(arrays, TOKENIZER, True)


def test_bad_text_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"^IMAGE_URL"):
        before(IMAGE_URL=strings(["https://example.org/cat.png"]))
    with pytest.raises(InvalidRequest, match=r"^QUERY"):
        before(QUERY=np.array([[b"\xff"]], np.object_))
