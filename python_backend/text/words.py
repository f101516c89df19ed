"""Words a client bans or favours, as tokens: each with a space before it and without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.text.tokenizer import Tokenizer, valid_text

MAX_WORDS: Final = 1024


def spellings(tokenizer: Tokenizer, words: Iterable[str], field: str) -> list[tuple[int, ...]]:
    """The token sequences that `words` become amid a text.

    Raises:
        InvalidRequest: naming `field`: a word without tokens, or not UTF-8; too many words.
    """
    words = tuple(words)
    if len(words) > MAX_WORDS:
        raise InvalidRequest(field, len(words), f"at most {MAX_WORDS} words are taken")
    return list(dict.fromkeys(ids for word in words for ids in _spellings(tokenizer, word, field)))


def bias_of_words(
    tokenizer: Tokenizer, words: Iterable[tuple[str, float]], logit_bias: Mapping[int, float]
) -> dict[int, float]:
    """`logit_bias` with each word's bias added to all the tokens of the word.

    Raises:
        InvalidRequest: as for `spellings`, naming bias_words.
    """
    bias = dict(logit_bias)
    for word, value in words:
        for token_id in {token_id for ids in spellings(tokenizer, [word], "bias_words") for token_id in ids}:
            bias[token_id] = bias.get(token_id, 0.0) + value
    return bias


def _spellings(tokenizer: Tokenizer, word: str, field: str) -> list[tuple[int, ...]]:
    bare = valid_text(word, field).removeprefix(" ")
    if not bare:
        raise InvalidRequest(field, word, "an entry is empty; leave it out")
    both = [tuple(tokenizer.encode_inner(spelling, field)) for spelling in (bare, " " + bare)]
    if not all(both):
        raise InvalidRequest(field, word, "has no tokens; leave it out")
    return both
