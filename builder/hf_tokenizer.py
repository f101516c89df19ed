"""The tokenizer of a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer

from trierarch.builder.checkpoint import TokenizerFiles
from trierarch.builder.errors import CheckpointError
from trierarch.builder.json_file import read_json_if_present
from trierarch.builder.manifest import CHAT_TEMPLATE_NAME, TOKENIZER_NAME
from trierarch.builder.sentencepiece_bpe import read_sentencepiece_file
from trierarch.builder.tokenizer import MAX_CHAT_TEMPLATE_BYTES, finish_tokenizer, prepend_token

_SENTENCEPIECE_NAME: Final = "tokenizer.model"


def read_tokenizer(directory: Path, config: Mapping[str, Any], vocab_size: int) -> TokenizerFiles:
    """Copy `tokenizer.json`, or convert `tokenizer.model`; find the chat template and the special tokens.

    Raises:
        CheckpointError: there is no tokenizer, or it cannot be read or converted.
    """
    path = directory / TOKENIZER_NAME
    own = read_json_if_present(directory / "tokenizer_config.json")
    tokenizer_json = path.read_bytes() if path.is_file() else _convert(directory, own)
    generation = read_json_if_present(directory / "generation_config.json")
    text = config.get("text_config")
    sources: list[Mapping[str, Any]] = [generation, config, text if isinstance(text, Mapping) else {}]
    ids = _ids_by_text(tokenizer_json)
    return finish_tokenizer(
        tokenizer_json,
        _chat_template(directory, own),
        vocab_size,
        bos=_first([*(_integers(one.get("bos_token_id")) for one in sources), _named(own, "bos_token", ids)]),
        eos=[
            *(token for one in sources for token in _integers(one.get("eos_token_id"))),
            *_named(own, "eos_token", ids),
        ],
        pad=_first([*(_integers(one.get("pad_token_id")) for one in sources), _named(own, "pad_token", ids)]),
    )


def _convert(directory: Path, own: Mapping[str, Any]) -> bytes:
    """`tokenizer.model` with what `tokenizer_config.json` and `added_tokens.json` add to it."""
    path = directory / _SENTENCEPIECE_NAME
    if not path.is_file():
        raise CheckpointError(f"{directory.name} has no {TOKENIZER_NAME}; download the checkpoint again")
    tokenizer = read_sentencepiece_file(path)
    added = {int(index): token for index, token in (own.get("added_tokens_decoder") or {}).items()}
    for content, index in read_json_if_present(directory / "added_tokens.json").items():
        added.setdefault(index, {"content": content, "special": True})
    for index, token in sorted(added.items()):
        content = str(token.get("content"))
        tokenizer.add_tokens([AddedToken(content, special=bool(token.get("special")), normalized=False)])
        if tokenizer.token_to_id(content) != index:
            raise CheckpointError(f"the added token {content!r} has id {index}, which leaves a gap after {path.name}")
    bos = _named(own, "bos_token", tokenizer.get_vocab()) or [1]
    if own.get("add_bos_token", True) and (text := tokenizer.id_to_token(bos[0])) is not None:
        prepend_token(tokenizer, text, bos[0])
    converted: str = tokenizer.to_str()
    return converted.encode()


def _chat_template(directory: Path, own: Mapping[str, Any]) -> str | None:
    path = directory / CHAT_TEMPLATE_NAME
    if path.is_file():
        if path.stat().st_size > MAX_CHAT_TEMPLATE_BYTES:
            raise CheckpointError(
                f"{path.name} has {path.stat().st_size} bytes: at most {MAX_CHAT_TEMPLATE_BYTES} are accepted"
            )
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path.name} is not UTF-8 ({error}); download the checkpoint again") from error
    template = own.get("chat_template") or read_json_if_present(directory / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, Mapping)}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) else None


def _ids_by_text(tokenizer_json: bytes) -> Mapping[str, int]:
    try:
        vocabulary: dict[str, int] = Tokenizer.from_buffer(tokenizer_json).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises no type of its own
        raise CheckpointError(f"{TOKENIZER_NAME} cannot be read ({error}); download the checkpoint again") from error
    return vocabulary


def _named(own: Mapping[str, Any], key: str, ids: Mapping[str, int]) -> list[int]:
    token = own.get(key)
    text = token.get("content") if isinstance(token, Mapping) else token
    return [ids[text]] if isinstance(text, str) and text in ids else []


def _integers(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int) and not isinstance(one, bool)]


def _first(groups: list[list[int]]) -> int | None:
    return next((token for group in groups for token in group), None)
