"""Small real tokenizers of the kinds that language models use, each learnt from the same few sentences."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from trierarch.python_backend.text.tokenizer import Tokenizer as OurTokenizer

SPECIALS = ("<|bos|>", "<|im_start|>", "<|im_end|>")
CORPUS = [
    "The capital of France is Paris. The capital of Italy is Rome.",
    "the the the   quick brown fox jumps over the lazy dog\n\n\tand over the stop sign.",
    "Straße, naïve café — 東京は日本の首都です。 你好，世界！",
    "def main():\n    return 1 + 2  # done\n",
]
KINDS = ("byte_level", "byte_fallback", "byte_fallback_no_prefix", "metaspace")


@cache
def backend(kind: str) -> Tokenizer:
    """The `tokenizers` library's own object."""
    tokenizer = _byte_level() if kind == "byte_level" else _sentencepiece(kind)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


@cache
def small_tokenizer(kind: str) -> OurTokenizer:
    """Ours on top of it."""
    return OurTokenizer(backend(kind))


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _sentencepiece(kind: str) -> Tokenizer:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = [chr(code) for code in range(ord(" ") + 1, ord("~") + 1)]
    trainer = trainers.BpeTrainer(vocab_size=200, initial_alphabet=alphabet, limit_alphabet=97, show_progress=False)
    learner.train_from_iterator(CORPUS, trainer)
    bytes_and_unknown = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = [
        *bytes_and_unknown,
        *(token for token, _ in sorted(learner.get_vocab().items(), key=lambda item: item[1])),
    ]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    merges = [
        (token[:cut], token[cut:])
        for token in tokens[len(bytes_and_unknown) :]
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    undo: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    elif kind == "byte_fallback":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence(undo)
    return tokenizer
