"""Whether two tokenizers mean the same by an id."""

from __future__ import annotations

from tokenizers import Tokenizer

from trierarch.builder.errors import ConfigError


def check_same_vocabulary(target: bytes, draft: bytes, vocab_size: int) -> None:
    """Compare two `tokenizer.json`, token by token: a draft is given the target's ids, and guesses in them.

    Of the target's ids below `vocab_size`, the draft's tokenizer must call each the same. It may lack added tokens (a
    base model drafts for one that chats), which it then never guesses. Ids that only the draft has a name for are
    never asked about, and entries named `[PAD{id}]`, with which GGUF files fill up their embeddings, are nobody's.

    Raises:
        ConfigError: an id is another token; the first is named.
    """
    if target == draft:
        return
    here, there = Tokenizer.from_buffer(target), Tokenizer.from_buffer(draft)
    added = here.get_added_tokens_decoder()
    for index in range(vocab_size):
        token, drafted = _token(here, index), _token(there, index)
        if token is None or token == drafted or (drafted is None and index in added):
            continue
        theirs = "missing there" if drafted is None else f"{drafted!r} there"
        raise ConfigError(
            f"its vocabulary is another: token {index} is {theirs} and {token!r} in the model; take a draft of the same "
            "family, whose tokenizer is the same"
        )


def _token(tokenizer: Tokenizer, index: int) -> str | None:
    token: str | None = tokenizer.id_to_token(index)
    return None if token == f"[PAD{index}]" else token
