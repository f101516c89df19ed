"""EvaluationText: what a quantised model is measured on, cut into windows of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer

from trierarch.builder.checkpoint import TokenizerFiles
from trierarch.builder.errors import CheckpointError, ConfigError

BUNDLED: Final = Path(__file__).parent / "texts" / "tide_mill.txt"
"""Prose, dialogue, figures and a little code, written for this purpose."""
WINDOW_TOKENS: Final = 512
"""Tokens that a model sees at most; each window begins afresh."""
MIN_TOKENS: Final = 256
"""Predictions below which a perplexity is mostly chance."""


@dataclass(frozen=True, slots=True)
class EvaluationText:
    """Windows of a text. In each, every token but the first is predicted from those before it."""

    name: str
    windows: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that are predicted."""
        return sum(len(window) - 1 for window in self.windows)

    @property
    def targets(self) -> torch.Tensor:
        """The tokens that are predicted, window after window: (num_tokens) int64."""
        return torch.tensor([token for window in self.windows for token in window[1:]], dtype=torch.int64)


def read_evaluation_text(
    path: Path | None, tokenizer: TokenizerFiles, vocab_size: int, max_seq_len: int
) -> EvaluationText:
    """Tokenise a text (None: the bundled one) and cut it into windows that the engine's limits allow.

    Windows begin with the beginning-of-sequence token where the tokenizer puts one before text.

    Raises:
        CheckpointError: the tokenizer yields tokens that the model does not have.
        ConfigError: the text cannot be read, is not UTF-8, or is too short.
    """
    path = path or BUNDLED
    ids = _encode(path, _read(path), tokenizer.tokenizer_json)
    if ids and max(ids) >= vocab_size:
        raise CheckpointError(
            f"the tokenizer yields token {max(ids)}, the model has {vocab_size}; take its own tokenizer"
        )
    tokens = tokenizer.tokens
    prefix = (tokens.bos,) if tokens.add_bos and tokens.bos is not None else ()
    step = max(1, min(WINDOW_TOKENS, max_seq_len) - len(prefix))
    windows = ((*prefix, *ids[start : start + step]) for start in range(0, len(ids), step))
    text = EvaluationText(path.name, tuple(window for window in windows if len(window) > 1))
    if text.num_tokens < MIN_TOKENS:
        raise ConfigError(
            f"accuracy_text is {str(path)!r}: {text.num_tokens} tokens to predict in windows of at most "
            f"{step + len(prefix)} tell too little; give a text of {MIN_TOKENS} or more"
        )
    return text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"accuracy_text is {str(path)!r}: byte {error.start} is not UTF-8; give a text in UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"accuracy_text is {str(path)!r}: it cannot be read ({error.strerror or error}); give a text file"
        ) from error


def _encode(path: Path, text: str, tokenizer_json: bytes) -> list[int]:
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as error:  # the library raises no type of its own
        raise ConfigError(f"accuracy_text is {str(path)!r}: it cannot be tokenised ({error})") from error
    return ids
