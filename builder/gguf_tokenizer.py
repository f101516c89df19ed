"""The tokenizer inside a GGUF file, rebuilt in the format of Hugging Face's `tokenizers`.

Two kinds, after `tokenizer.ggml.model`: `gpt2`, byte-level BPE whose text is first split by the patterns that
`tokenizer.ggml.pre` names, and `llama`, SentencePiece BPE with scores and byte fallback. The splitting patterns are
those of the models' own tokenizer files; llama.cpp's vocabulary code defines which name means which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from trierarch.builder.checkpoint import TokenizerFiles
from trierarch.builder.errors import CheckpointError
from trierarch.builder.sentencepiece_bpe import build_sentencepiece_bpe
from trierarch.builder.tokenizer import TokenType, finish_tokenizer, mark_special_tokens, prepend_token
from trierarch.builder.validation import validated

_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASELESS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3: Final = _CASELESS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2: Final = _CASELESS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED: Final = (
    r"[^\r\n\p{L}\p{N}]?"
    + _UPPER
    + "*"
    + _LOWER
    + "+{end}|"
    + (r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*{end}")
)
_CASED_TAIL: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN: Final = _CASED.replace("{end}", "") + r"|\p{N}" + _CASED_TAIL
_GPT4O: Final = _CASED.replace("{end}", _CASELESS + "?") + r"|\p{N}{1,3}" + _CASED_TAIL

_SPLITS: Final[Mapping[str, tuple[str, ...]]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "dbrx": (_LLAMA3,),
    "smaug-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "tekken": (_TEKKEN,),
    "gpt-4o": (_GPT4O,),
}
_WHOLE_WORDS_FIRST: Final = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken"})
"""A word that is itself a token is taken whole; these kinds also begin with `bos` unless the file says otherwise."""

_WHOLE: Final = (TokenType.CONTROL, TokenType.USER_DEFINED)
_END_OF_TURN: Final = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
"""Control tokens that end a chat turn, for files that do not name theirs."""


class _Vocabulary(BaseModel):
    """The `tokenizer.*` metadata; lists have one entry for each token id."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=lambda name: f"tokenizer.ggml.{name}")

    model: str
    pre: str = "default"
    tokens: list[str] = Field(min_length=1)
    token_type: list[int] | None = None
    scores: list[float] | None = None
    merges: list[str] = []
    add_bos_token: bool | None = None
    add_space_prefix: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    eot_token_id: int | None = None
    eom_token_id: int | None = None
    padding_token_id: int | None = None
    chat_template: str | None = Field(default=None, alias="tokenizer.chat_template")

    @property
    def types(self) -> list[int]:
        """TokenType of each token."""
        return self.token_type or [TokenType.NORMAL] * len(self.tokens)


def read_gguf_tokenizer(metadata: Mapping[str, Any], vocab_size: int) -> TokenizerFiles:
    """Rebuild the tokenizer of a file with `metadata`.

    Raises:
        CheckpointError: it is absent, inconsistent or of an unknown kind.
    """
    vocabulary = validated(_Vocabulary, metadata, "")
    tokens, types = vocabulary.tokens, vocabulary.types
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        raise CheckpointError(
            "tokenizer.ggml.tokens repeats a token or differs in length from token_type; take another conversion"
        )
    if vocabulary.model == "gpt2":
        tokenizer, add_bos = _byte_level(vocabulary), vocabulary.pre in _WHOLE_WORDS_FIRST
    elif vocabulary.model == "llama":
        tokenizer, add_bos = _sentencepiece(vocabulary), True
    else:
        raise CheckpointError(
            f"tokenizer.ggml.model is {vocabulary.model!r}: known are 'gpt2' (BPE) and 'llama' (SentencePiece)"
        )
    if vocabulary.add_bos_token is not None:
        add_bos = vocabulary.add_bos_token
    bos = vocabulary.bos_token_id
    if add_bos and bos is not None and 0 <= bos < len(tokens):
        prepend_token(tokenizer, tokens[bos], bos)
    named = (vocabulary.eos_token_id, vocabulary.eot_token_id, vocabulary.eom_token_id)
    whole = {token: index for index, token in enumerate(tokens) if types[index] in _WHOLE}
    return finish_tokenizer(
        tokenizer.to_str().encode(),
        vocabulary.chat_template,
        vocab_size,
        bos=bos,
        eos=[*named, *(whole[token] for token in _END_OF_TURN if token in whole)],
        pad=vocabulary.padding_token_id,
    )


def _byte_level(vocabulary: _Vocabulary) -> Tokenizer:
    patterns = _SPLITS.get(vocabulary.pre)
    if patterns is None:
        raise CheckpointError(f"tokenizer.ggml.pre is {vocabulary.pre!r}: known are {', '.join(_SPLITS)}")
    try:
        model = models.BPE(
            vocab={token: index for index, token in enumerate(vocabulary.tokens)},
            merges=[(left, right) for left, right in (merge.split(" ", 1) for merge in vocabulary.merges)],
            ignore_merges=vocabulary.pre in _WHOLE_WORDS_FIRST,
        )
    except Exception as error:  # the library raises no type of its own
        raise CheckpointError(f"tokenizer.ggml.merges contradicts the tokens ({error})") from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    mark_special_tokens(tokenizer, vocabulary.tokens, vocabulary.types)
    return tokenizer


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    if vocabulary.scores is None or len(vocabulary.scores) != len(vocabulary.tokens):
        raise CheckpointError("tokenizer.ggml.scores is missing; take another conversion of the model")
    return build_sentencepiece_bpe(vocabulary.tokens, vocabulary.scores, vocabulary.types, vocabulary.add_space_prefix)
