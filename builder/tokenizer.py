"""What every engine's tokenizer is checked for, wherever it came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Final

from tokenizers import AddedToken, Tokenizer, processors

from trierarch.builder.checkpoint import TokenizerFiles
from trierarch.builder.errors import CheckpointError
from trierarch.builder.manifest import Tokens

MAX_CHAT_TEMPLATE_BYTES: Final = 1 << 20
"""Templates are programs that run for each chat; published ones are below 50 kB."""


class TokenType(IntEnum):
    """What a vocabulary entry is, with the numbers of SentencePiece and of GGUF's `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def mark_special_tokens(tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Have special and user-defined tokens matched whole in text; only the special ones vanish when decoded."""
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind != TokenType.USER_DEFINED, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        ]
    )


def prepend_token(tokenizer: Tokenizer, token: str, index: int) -> None:
    """Have every encoding begin with `token`, whose id is `index`."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", "$B:1"], special_tokens=[(token, index)]
    )


def finish_tokenizer(
    tokenizer_json: bytes,
    chat_template: str | None,
    vocab_size: int,
    bos: int | None,
    eos: Iterable[int | None],
    pad: int | None,
) -> TokenizerFiles:
    """Check a tokenizer and record its special tokens; ids that the model cannot produce are left out.

    Raises:
        CheckpointError: it is not a `tokenizers` file, or the chat template is too large.
    """
    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # the library raises no type of its own
        raise CheckpointError(f"tokenizer.json cannot be read ({error}); download the checkpoint again") from error
    if chat_template is not None and len(chat_template.encode()) > MAX_CHAT_TEMPLATE_BYTES:
        raise CheckpointError(
            f"the chat template has {len(chat_template.encode())} bytes: at most {MAX_CHAT_TEMPLATE_BYTES} are accepted"
        )
    known_bos = bos if _is_known(bos, vocab_size) else None
    known_eos = tuple(dict.fromkeys(token for token in eos if token is not None and _is_known(token, vocab_size)))
    first = tokenizer.encode("a").ids[:1]
    return TokenizerFiles(
        tokenizer_json=tokenizer_json,
        chat_template=chat_template or None,
        tokens=Tokens(
            bos=known_bos,
            eos=known_eos,
            pad=pad if pad is not None and _is_known(pad, vocab_size) else (*known_eos, 0)[0],
            add_bos=known_bos is not None and first == [known_bos],
        ),
    )


def _is_known(token: int | None, vocab_size: int) -> bool:
    return token is not None and 0 <= token < vocab_size
