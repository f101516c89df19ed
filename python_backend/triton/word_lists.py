"""The contract's word lists: token sequences packed in two rows of INT32.

Row 0 holds the words' token ids one after the other, padded with 0; row 1 the end offset of each word, padded with -1.
The words (5, 6) and (9,) are [[5, 6, 9], [2, 3, -1]].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trierarch.python_backend.errors import InvalidRequest

Words = tuple[tuple[int, ...], ...]


def decode_word_list(name: str, packed: NDArray[np.generic]) -> Words:
    """The words of an array (2, N).

    Raises:
        InvalidRequest: another shape, or offsets that do not rise within the row.
    """
    if packed.ndim != 2 or packed.shape[0] != 2:
        raise InvalidRequest(name, packed.shape, "must be of shape (batch, 2, length): token ids, then end offsets")
    tokens, offsets = packed.tolist()
    words: list[tuple[int, ...]] = []
    start = 0
    for end in offsets:
        if end == -1:
            break
        if not start < end <= len(tokens):
            raise InvalidRequest(name, offsets, f"end offsets must rise and stay within {len(tokens)} tokens")
        words.append(tuple(tokens[start:end]))
        start = end
    return tuple(words)


def encode_word_lists(rows: Sequence[Words]) -> NDArray[np.int32]:
    """One word list per row, padded to a common length (B, 2, N). Without any word N is 0."""
    length = max((sum(len(word) for word in words) for words in rows), default=0)
    packed = np.zeros((len(rows), 2, length), np.int32)
    packed[:, 1, :] = -1
    for row, words in zip(packed, rows, strict=True):
        tokens = [token for word in words for token in word]
        row[0, : len(tokens)] = tokens
        row[1, : len(words)] = np.cumsum([len(word) for word in words], dtype=np.int32)
    return packed
