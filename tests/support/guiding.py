"""Small vocabularies for guides, engines whose outputs can be read, and walks through grammars."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

from support.random_engine import random_weights, tiny_architecture, tiny_manifest, write_engine
from support.tokenizers import backend
from trierarch.builder.manifest import TOKENIZER_NAME, EngineManifest, Rope, Tokens
from trierarch.python_backend.guides.grammar import Grammars, Matcher
from trierarch.python_backend.request import GuideKind

BYTES = [bytes([byte]) for byte in range(256)]
"""A vocabulary in which every text has one spelling."""
_CLOSING = b'"}]'


@cache
def byte_grammars() -> Grammars:
    """Grammars of BYTES; the token 256 stands for no text."""
    return Grammars([*BYTES, b""])


def allows(mask: bytes, token_id: int) -> bool:
    """Whether a mask has a token."""
    return bool(mask[token_id // 8] >> token_id % 8 & 1)


def allowed(mask: bytes, vocab_size: int) -> list[int]:
    """All tokens of a mask."""
    return [token_id for token_id in range(vocab_size) if allows(mask, token_id)]


def walk(matcher: Matcher, chance: random.Random, num_free: int, end: int = 256, most: int = 3000) -> bytes | None:
    """What comes of drawing bytes that a grammar allows: any for a while, then such that end soon; None if none ends.

    The matcher must have been made with `end` for its end token.
    """
    text = bytearray()
    for step in range(most):
        mask = matcher.mask()
        if not mask or (allows(mask, end) and (step >= num_free or chance.random() < 0.3)):
            return bytes(text)
        choices = [byte for byte in range(256) if allows(mask, byte)]
        closing = [byte for byte in _CLOSING if byte in choices]
        if step >= num_free or chance.random() < 0.2:
            choices = closing[:1] or choices[:1] + choices[-1:]
        byte = chance.choice(choices)
        assert matcher.accept(byte)
        text.append(byte)
    return None


def outputs(kind: GuideKind, guide: str, num_walks: int, seed: int = 0) -> list[bytes]:
    """Texts that a guide lets through, drawn at random; those that would not end are left out."""
    walks = (
        walk(byte_grammars().match(kind, guide, (256,)), random.Random(1000 * seed + index), index % 40)
        for index in range(num_walks)
    )
    return [text for text in walks if text is not None]


def readable_engine(folder: Path, **changes: Any) -> EngineManifest:
    """Write an engine of random weights with a byte-level tokenizer, whose model has a few more tokens than that.

    changes: of `tiny_manifest`.
    """
    tokenizer = backend("byte_level")
    vocab_size = tokenizer.get_vocab_size() + 5
    architecture = tiny_architecture(vocab_size=vocab_size, head_dim=16, ropes=(Rope(rotary_dim=16),))
    tokens = Tokens(bos=None, eos=(tokenizer.token_to_id("<|im_end|>"),), pad=0, add_bos=False)
    manifest = tiny_manifest(architecture, **changes).model_copy(update={"tokens": tokens})
    write_engine(folder, manifest, random_weights(architecture, manifest.dtype))
    (folder / TOKENIZER_NAME).write_text(tokenizer.to_str())
    return manifest
