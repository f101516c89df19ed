"""SentencePiece BPE (pieces with scores, byte fallback) as a Hugging Face tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers

from trierarch.builder.errors import CheckpointError
from trierarch.builder.tokenizer import TokenType, mark_special_tokens

_SPACE: Final = "\u2581"


def build_sentencepiece_bpe(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], has_space_prefix: bool
) -> Tokenizer:
    """Tokenizer whose merges replay SentencePiece's order: of all pieces that two neighbours make, best score first.

    `tokens`, `scores` and `types` (TokenType) have one entry for each id.
    """
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.UNKNOWN), None)
    merges = _merges(vocabulary, scores, types)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces: list[Any] = [normalizers.Replace(" ", _SPACE)]
    undo: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if has_space_prefix:
        spaces.insert(0, normalizers.Prepend(_SPACE))
        undo.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(undo)
    mark_special_tokens(tokenizer, tokens, types)
    return tokenizer


def read_sentencepiece_file(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.model`.

    Raises:
        CheckpointError: the file cannot be read, or holds something other than BPE over unnormalised text.
    """
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path.name} cannot be read; download the checkpoint again") from error
    size = model.get_piece_size()
    scores = [model.get_score(index) for index in range(size)]
    types = [_type_of(model, index) for index in range(size)]
    normal = [score for score, kind in zip(scores, types, strict=True) if kind == TokenType.NORMAL]
    # BPE scores are ranks, 0, -1, -2, ...; user-defined pieces, which the library does not tell apart, all have 0.
    is_ranked = all(score == round(score) for score in normal) and normal.count(0.0) <= 1
    if not is_ranked or model.normalize("ﬁ  a").lstrip(_SPACE) != f"ﬁ{_SPACE * 2}a":
        raise CheckpointError(
            f"{path.name} is not a plain BPE model, which alone can be converted; save the checkpoint's tokenizer.json"
        )
    has_space_prefix = model.normalize("a").startswith(_SPACE)
    return build_sentencepiece_bpe([model.id_to_piece(index) for index in range(size)], scores, types, has_space_prefix)


def _type_of(model: Any, index: int) -> TokenType:
    if model.is_unknown(index):
        return TokenType.UNKNOWN
    if model.is_control(index):
        return TokenType.CONTROL
    if model.is_byte(index):
        return TokenType.BYTE
    return TokenType.UNUSED if model.is_unused(index) else TokenType.NORMAL


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    ranked = []
    for piece, index in vocabulary.items():
        if types[index] != TokenType.NORMAL:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-scores[index], index, vocabulary[left], vocabulary[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]
