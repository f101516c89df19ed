"""The tokenizer inside a GGUF file, rebuilt in the format of Hugging Face's `tokenizers`.

Two kinds, after `tokenizer.ggml.model`: `gpt2`, byte-level BPE whose text is first split by the patterns that
`tokenizer.ggml.pre` names, and `llama`, SentencePiece BPE with scores and byte fallback. The splitting patterns are
those of the models' own tokenizer files; llama.cpp's vocabulary code defines which name means which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from trierarch.builder.checkpoint import TokenizerFiles
from trierarch.builder.errors import CheckpointError
from trierarch.builder.tokenizer import finish_tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPACE: Final = "\u2581"

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

_END_OF_TURN: Final = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
"""Control tokens that end a chat turn, for files that do not name theirs."""


def read_gguf_tokenizer(metadata: Mapping[str, Any], vocab_size: int) -> TokenizerFiles:
    """Rebuild the tokenizer of a file with `metadata`.

    Raises:
        CheckpointError: it is absent, inconsistent or of an unknown kind.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or len(set(tokens)) != len(tokens):
        raise CheckpointError(
            "tokenizer.ggml.tokens is missing or repeats a token; take another conversion of the model"
        )
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer, add_bos = _byte_level(metadata, tokens)
    elif kind == "llama":
        tokenizer, add_bos = _sentencepiece(metadata, tokens, types)
    else:
        raise CheckpointError(f"tokenizer.ggml.model is {kind!r}: known are 'gpt2' (BPE) and 'llama' (SentencePiece)")
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED, _UNKNOWN)
        ]
    )
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token", add_bos) and bos is not None and bos < len(tokens):
        prefix = tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[prefix, "$A"], pair=[prefix, "$A", "$B:1"], special_tokens=[(prefix, bos)]
        )
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    controls = {token: index for index, token in enumerate(tokens) if types[index] in (_CONTROL, _USER_DEFINED)}
    turns = [controls[token] for token in _END_OF_TURN if token in controls]
    return finish_tokenizer(
        tokenizer.to_str().encode(),
        metadata.get("tokenizer.chat_template"),
        vocab_size,
        bos=bos,
        eos=[*named, *turns],
        pad=metadata.get("tokenizer.ggml.padding_token_id"),
    )


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> tuple[Tokenizer, bool]:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    patterns = _SPLITS.get(pre)
    if patterns is None:
        raise CheckpointError(f"tokenizer.ggml.pre is {pre!r}: known are {', '.join(_SPLITS)}")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or ()]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _WHOLE_WORDS_FIRST)
    except Exception as error:  # the library raises no type of its own
        raise CheckpointError(f"tokenizer.ggml.merges contradicts the tokens ({error})") from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre in _WHOLE_WORDS_FIRST


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> tuple[Tokenizer, bool]:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CheckpointError("tokenizer.ggml.scores is missing; take another conversion of the model")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", types.index(_UNKNOWN) if _UNKNOWN in types else None)
    model = models.BPE(
        vocab=vocabulary,
        merges=_merges(vocabulary, scores, types),
        unk_token=tokens[unknown] if unknown is not None and unknown < len(tokens) else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    has_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces: list[Any] = [normalizers.Replace(" ", _SPACE)]
    undo: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if has_prefix:
        spaces.insert(0, normalizers.Prepend(_SPACE))
        undo.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(undo)
    return tokenizer, True


def _merges(vocabulary: Mapping[str, int], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first: SentencePiece's greedy order as ranks."""
    ranked = []
    for piece, index in vocabulary.items():
        if types[index] != _NORMAL:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-scores[index], index, vocabulary[left], vocabulary[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]
