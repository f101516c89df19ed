"""What `preprocessing` and `postprocessing` compute, array in and array out, for clients that do the steps themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.text.tokenizer import Tokenizer
from trierarch.python_backend.triton.inputs import Array, Inputs, batch_size
from trierarch.python_backend.triton.refusals import refuse_unsupported
from trierarch.python_backend.triton.responses import NamedArray
from trierarch.python_backend.triton.word_lists import Words, encode_word_lists


def preprocess(
    arrays: Mapping[str, Array], tokenizer: Tokenizer, manifest: EngineManifest, add_special_tokens: bool
) -> list[NamedArray]:
    """Text to token ids, with every output that clients expect to find.

    Raises:
        InvalidRequest: a tensor is missing, misshapen or not honoured here.
    """
    rows = [Inputs(arrays, row) for row in range(batch_size(arrays))]
    for row in rows:
        refuse_unsupported(row)
    pad_ids = [_default(row.integer("PAD_ID"), manifest.tokens.pad) for row in rows]
    end_id = next(iter(manifest.tokens.eos), -1)
    prompts = [_encode_prompt(row, tokenizer, add_special_tokens) for row in rows]
    return [
        ("INPUT_ID", _padded(prompts, pad_ids)),
        ("REQUEST_INPUT_LEN", _column([len(prompt) for prompt in prompts])),
        # A decoder without an encoder starts from nothing; the contract says so with one padding token.
        ("DECODER_INPUT_ID", _column(pad_ids)),
        ("REQUEST_DECODER_INPUT_LEN", _column([1] * len(rows))),
        ("BAD_WORDS_IDS", encode_word_lists([_words(row, "BAD_WORDS_DICT", tokenizer) for row in rows])),
        ("STOP_WORDS_IDS", encode_word_lists([_words(row, "STOP_WORDS_DICT", tokenizer) for row in rows])),
        ("EMBEDDING_BIAS", _embedding_bias(rows, tokenizer, manifest.architecture.vocab_size)),
        ("REQUEST_OUTPUT_LEN", _column([_output_length(row) for row in rows])),
        ("OUT_END_ID", _column([_default(row.integer("END_ID"), end_id) for row in rows])),
        ("OUT_PAD_ID", _column(pad_ids)),
        ("OUT_PROMPT_TABLE_EXTRA_IDS", np.zeros((len(rows), 0), np.uint64)),
    ]


def postprocess(arrays: Mapping[str, Array], tokenizer: Tokenizer, skip_special_tokens: bool) -> list[NamedArray]:
    """Token ids to text: one string for each beam of each row, in an array of rank 1.

    Raises:
        InvalidRequest: a tensor is missing or misshapen, or a length is longer than its row.
    """
    texts = []
    for row in range(batch_size(arrays)):
        tokens, lengths = _beams(Inputs(arrays, row))
        for beam, length in zip(tokens, lengths, strict=True):
            if not 0 <= length <= len(beam):
                raise InvalidRequest("SEQUENCE_LENGTH", length, f"must be between 0 and {len(beam)}")
            texts.append(_decode(beam[:length], tokenizer, skip_special_tokens))
    return [("OUTPUT", np.array([text.encode() for text in texts], np.object_))]


def _beams(inputs: Inputs) -> tuple[list[list[int]], Sequence[int]]:
    tokens = inputs.row("TOKENS_BATCH")
    lengths = inputs.integers("SEQUENCE_LENGTH")
    if tokens is None:
        return [], ()
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise InvalidRequest("TOKENS_BATCH", tokens.shape, "must hold integers, of shape (batch, beams, length)")
    if lengths is None or len(lengths) != len(tokens):
        raise InvalidRequest("SEQUENCE_LENGTH", lengths, f"needs one length a beam: {len(tokens)}")
    return tokens.tolist(), lengths


def _decode(token_ids: Sequence[int], tokenizer: Tokenizer, skip_special_tokens: bool) -> str:
    for token_id in token_ids:
        if not 0 <= token_id < tokenizer.vocab_size:
            raise InvalidRequest("TOKENS_BATCH", token_id, f"token ids lie between 0 and {tokenizer.vocab_size - 1}")
    return tokenizer.decode(token_ids, skip_special_tokens)


def _encode_prompt(inputs: Inputs, tokenizer: Tokenizer, add_special_tokens: bool) -> list[int]:
    query = inputs.text("QUERY")
    if query is None:
        raise InvalidRequest("QUERY", None, "a request needs a text")
    return tokenizer.encode(query, add_special_tokens, field="QUERY")


def _output_length(inputs: Inputs) -> int:
    length = inputs.integer("REQUEST_OUTPUT_LEN")
    if length is None:
        raise InvalidRequest("REQUEST_OUTPUT_LEN", None, "say how many tokens to generate")
    return length


def _words(inputs: Inputs, name: str, tokenizer: Tokenizer) -> Words:
    words = (tuple(tokenizer.encode(word, add_special_tokens=False, field=name)) for word in inputs.texts(name))
    return tuple(word for word in words if word)


def _embedding_bias(rows: list[Inputs], tokenizer: Tokenizer, vocab_size: int) -> NDArray[np.float32]:
    """Zeros but for the words' tokens (B, vocab_size); (B, 0) where no row has any word."""
    name = "EMBEDDING_BIAS_WORDS"
    if not any(name in row for row in rows):
        return np.zeros((len(rows), 0), np.float32)
    bias = np.zeros((len(rows), vocab_size), np.float32)
    for values, row in zip(bias, rows, strict=True):
        words = row.texts(name)
        weights = row.numbers("EMBEDDING_BIAS_WEIGHTS")
        if weights is None or weights.size != len(words):
            raise InvalidRequest("EMBEDDING_BIAS_WEIGHTS", weights, f"needs one weight a word: {len(words)}")
        for word, weight in zip(words, weights.tolist(), strict=True):
            for token_id in tokenizer.encode(word, add_special_tokens=False, field=name):
                values[token_id] += weight
    return bias


def _padded(rows: list[list[int]], pad_ids: list[int]) -> NDArray[np.int32]:
    array = np.empty((len(rows), max(map(len, rows))), np.int32)
    for target, row, pad_id in zip(array, rows, pad_ids, strict=True):
        target[: len(row)] = row
        target[len(row) :] = pad_id
    return array


def _column(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32).reshape(-1, 1)


def _default(value: int | None, default: int) -> int:
    return default if value is None else value
