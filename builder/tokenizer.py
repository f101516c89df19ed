"""What every engine's tokenizer is checked for, wherever it came from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tokenizers import Tokenizer

from trierarch.builder.checkpoint import TokenizerFiles
from trierarch.builder.errors import CheckpointError
from trierarch.builder.manifest import Tokens

MAX_CHAT_TEMPLATE_BYTES: Final = 1 << 20
"""Templates are programs that run for each chat; published ones are below 50 kB."""


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
