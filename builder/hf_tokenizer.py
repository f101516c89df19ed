"""The tokenizer of a Hugging Face directory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from trierarch.builder.checkpoint import TokenizerFiles
from trierarch.builder.errors import CheckpointError
from trierarch.builder.json_file import read_json_if_present
from trierarch.builder.manifest import CHAT_TEMPLATE_NAME, TOKENIZER_NAME
from trierarch.builder.tokenizer import MAX_CHAT_TEMPLATE_BYTES, finish_tokenizer

_OLDER_FORMS: Final = ("tokenizer.model", "vocab.json", "tekken.json")


def read_tokenizer(directory: Path, config: Mapping[str, Any], vocab_size: int) -> TokenizerFiles:
    """Copy `tokenizer.json`, or convert an older form; find the chat template and the special tokens.

    Raises:
        CheckpointError: there is no tokenizer, or it cannot be read or converted.
    """
    path = directory / TOKENIZER_NAME
    tokenizer_json = path.read_bytes() if path.is_file() else _convert(directory)
    own = read_json_if_present(directory / "tokenizer_config.json")
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


def _convert(directory: Path) -> bytes:
    if not any((directory / name).is_file() for name in _OLDER_FORMS):
        raise CheckpointError(f"{directory.name} has no {TOKENIZER_NAME}; download the checkpoint again")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise CheckpointError(
            f"{directory.name} has no {TOKENIZER_NAME}, and converting its older tokenizer needs transformers; "
            "install it with: pip install transformers"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
        converted: str = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # whatever a foreign file makes the converter raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"the tokenizer of {directory.name} cannot be converted ({reason})") from error
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
