"""TokenBytes: the bytes each token stands for, so that text can be put together token by token.

A tokenizer's decoder works on whole sequences. The two kinds that language models use can be told apart into bytes a
token, and that is all a stream needs: byte-level BPE (GPT-2's alphabet) and SentencePiece (spaces as U+2581, bytes as
<0xHH>). Only the very beginning of a text differs: some SentencePiece decoders drop the space that encoding put there.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from tokenizers import Tokenizer as Backend

from trierarch.builder.errors import EngineError

_BYTE_TOKEN: Final = re.compile("<0x([0-9A-Fa-f]{2})>")
_EACH_BYTE: Final = "trierarch.each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """SentencePiece's way: U+FFFD for every byte that is no character, not one for a broken character."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\N{REPLACEMENT CHARACTER}" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _replace_each_byte)


class TokenBytes:
    """Bytes by token id, worked out on first use. Safe for any number of threads."""

    def __init__(self, backend: Backend) -> None:
        """Raise EngineError for a decoder of a kind not known here."""
        self._backend = backend
        self._known: dict[int, bytes] = {}  # id -> bytes
        steps = _steps(backend)
        kinds = [step["type"] for step in steps]
        self._is_byte_level = kinds == ["ByteLevel"]
        self._has_byte_tokens = "ByteFallback" in kinds
        self._replaced = [(step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace"]
        self._strips_first_space = "Strip" in kinds
        self._first_token_loses = ""
        for step in steps:
            if step["type"] == "Metaspace":
                self._replaced.append((step["replacement"], " "))
                self._first_token_loses = "" if step["prepend_scheme"] == "never" else step["replacement"]

    @property
    def error_handler(self) -> str:
        """How bytes that are no UTF-8 become U+FFFD: as the tokenizer's own decoder does it."""
        return "replace" if self._is_byte_level else _EACH_BYTE

    def of(self, token_id: int) -> bytes:
        """Bytes of a token amid a text; none for an id that the tokenizer does not know."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._bytes(self._backend.id_to_token(token_id) or "")
        return known

    def first(self, token_id: int) -> bytes:
        """Bytes of a token at the beginning of a text."""
        if self._first_token_loses:
            token = self._backend.id_to_token(token_id) or ""
            return self._bytes(token.replace(self._first_token_loses, ""))
        return self.of(token_id).removeprefix(b" ") if self._strips_first_space else self.of(token_id)

    def _bytes(self, token: str) -> bytes:
        if self._is_byte_level:
            known = [_BYTE_OF_CHARACTER.get(character) for character in token]
            return token.encode() if None in known else bytes(byte for byte in known if byte is not None)
        byte = _BYTE_TOKEN.fullmatch(token) if self._has_byte_tokens else None
        if byte:
            return bytes.fromhex(byte[1])
        for old, new in self._replaced:
            token = token.replace(old, new)
        return token.encode()


def _steps(backend: Backend) -> list[Mapping[str, Any]]:
    """The decoder as a list of steps, of kinds and in an order that `TokenBytes` stands for."""
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__()) if backend.decoder else {"type": None}
    steps: list[Mapping[str, Any]] = decoder.get("decoders", [decoder])
    if [step["type"] for step in steps] == ["ByteLevel"] or (steps and all(map(_is_sentencepiece, steps))):
        return steps
    raise EngineError(
        f"tokenizer.json: its decoder is {json.dumps(decoder)[:200]}, neither byte-level BPE nor SentencePiece; "
        "build the engine from a checkpoint with one of these"
    )


def _is_sentencepiece(step: Mapping[str, Any]) -> bool:
    match step:
        case {"type": "ByteFallback" | "Fuse" | "Metaspace"} | {"type": "Replace", "pattern": {"String": str()}}:
            return True
        case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
            return True
    return False


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's bytes: printable characters stand for themselves, the others are moved past U+0100 in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(moved)}


_BYTE_OF_CHARACTER: Final = _byte_level_alphabet()
