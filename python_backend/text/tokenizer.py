"""Tokenizer: text → token ids, and the bytes of tokens for the way back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer as Backend

from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import TOKENIZER_NAME
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.text.token_bytes import TokenBytes

# Text that others stand behind: pieces of a word are split from it as they would be amid a sentence.
_ANCHOR: Final = "\n"


class Tokenizer:
    """An engine's tokenizer. Nothing changes after loading, so any number of threads may share it."""

    def __init__(self, backend: Backend) -> None:
        """Raise EngineError if the tokenizer's decoder is of a kind not known here."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.bytes = TokenBytes(backend)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.special_ids = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self._anchor_ids = self._backend.encode(_ANCHOR, add_special_tokens=False).ids

    @classmethod
    def load(cls, engine: Path) -> Tokenizer:
        """Read `engine/tokenizer.json`.

        Raises:
            EngineError: the file is missing, unreadable or of an unknown kind.
        """
        path = engine / TOKENIZER_NAME
        try:
            backend = Backend.from_buffer(path.read_bytes())
        except Exception as error:  # the library raises no type of its own
            raise EngineError(f"{path} cannot be read ({error}); rebuild the engine with: trierarch build") from error
        return cls(backend)

    def encode(self, text: str | bytes, add_special_tokens: bool = True, field: str = "prompt") -> list[int]:
        """Token ids of `text`; special tokens written out in it count as such. `field` is for the error.

        Raises:
            InvalidRequest: the text is not UTF-8, or has half a surrogate pair.
        """
        return self._backend.encode(valid_text(text, field), add_special_tokens=add_special_tokens).ids

    def encode_inner(self, text: str | bytes, field: str) -> list[int]:
        """Token ids of `text` as it stands amid other text, without the space some tokenizers put before a text.

        Raises:
            InvalidRequest: as for `encode`.
        """
        anchored = self.encode(_ANCHOR + valid_text(text, field), add_special_tokens=False)
        num_anchor_ids = len(self._anchor_ids)
        if anchored[:num_anchor_ids] == self._anchor_ids:
            return anchored[num_anchor_ids:]
        return self.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence.

        As the `tokenizers` library gives it, but for one thing: where it gives up a whole run of byte tokens because
        one of them is wrong, the characters of the run that are complete are kept.
        """
        kept = [token_id for token_id in token_ids if not (skip_special_tokens and token_id in self.special_ids)]
        first = next((place for place, token_id in enumerate(kept) if self.bytes.of(token_id)), len(kept))
        data = b"".join(map(self.bytes.first, kept[first : first + 1])) + b"".join(
            map(self.bytes.of, kept[first + 1 :])
        )
        return data.decode("utf-8", errors=self.bytes.error_handler)

    def token_text(self, token_id: int | None) -> str:
        """A token as it is written in the vocabulary, such as <|im_end|>; empty for None or an unknown id."""
        return (self._backend.id_to_token(token_id) or "") if token_id is not None else ""


def valid_text(text: str | bytes, field: str) -> str:
    """`text` as a string that has a UTF-8 form.

    Raises:
        InvalidRequest: naming `field`.
    """
    try:
        if isinstance(text, bytes):
            return text.decode("utf-8")
        text.encode("utf-8")
    except UnicodeError as error:
        raise InvalidRequest(field, text, f"is not valid UTF-8 ({error}); send text in UTF-8") from None
    return text
