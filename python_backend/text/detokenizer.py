"""Detokenizer: the text of a stream of tokens, piece by piece."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from itertools import islice

from trierarch.python_backend.text.tokenizer import Tokenizer

# Visible tokens at the end of the prompt that may hold the beginning of a character: at least a byte each.
_MAX_TAIL = 4


class Detokenizer:
    """Bytes in, whole characters out: a character is held back until its last byte is there.

    All the pieces together are what `Tokenizer.decode` makes of the whole output; the output of a prompt goes on where
    the prompt ends, with its space or its half-written character. Each token costs O(1).
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()
    ) -> None:
        self._bytes = tokenizer.bytes
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors=self._bytes.error_handler)
        self._is_first = True
        self._has_output = False
        visible = (token_id for token_id in reversed(prompt_token_ids) if token_id not in self._skipped)
        self.push(reversed(list(islice(visible, _MAX_TAIL))))
        self._has_output = False

    def push(self, token_ids: Iterable[int]) -> str:
        """The characters that these tokens complete."""
        data = bytearray()
        for token_id in token_ids:
            if token_id in self._skipped:
                continue
            if self._is_first:
                data += self._bytes.first(token_id)
                self._is_first = not self._bytes.of(token_id)
            else:
                data += self._bytes.of(token_id)
        if data and not self._has_output:
            self._has_output = True
            if not _continues_character(data[0]):
                self._utf8.reset()  # what the prompt broke off is no part of the output
        return self._utf8.decode(bytes(data))

    def flush(self) -> str:
        """What is held back, as U+FFFD: the output ended amid a character."""
        return self._utf8.decode(b"", final=True) if self._has_output else ""


def _continues_character(byte: int) -> bool:
    return byte & 0b1100_0000 == 0b1000_0000
