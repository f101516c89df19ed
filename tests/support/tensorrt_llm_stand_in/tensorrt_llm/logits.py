"""What the stand-in tells of logits: rows that fall off from one token to either side, in tensors as the library gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PADDING = 7
"""Columns beyond the vocabulary, of an engine; what is in them is nobody's logit."""


def logits_row(token: int, vocab_size: int) -> list[float]:
    """The token has most, and so many less the one that is so many away."""
    return [-float(abs(other - token)) for other in range(vocab_size)]


def prompt_rows(prompt: Sequence[int], vocab_size: int) -> list[list[float]]:
    """Behind each token of a prompt."""
    return [logits_row((token + place) % vocab_size, vocab_size) for place, token in enumerate(prompt)]


def tensor(rows: list[list[float]], is_engine: bool) -> Any:
    """Of an engine float32 and padded, of the PyTorch flow the model's own type."""
    import torch

    if not is_engine:
        return torch.tensor(rows, dtype=torch.bfloat16)
    return torch.nn.functional.pad(torch.tensor(rows), (0, PADDING), value=1000.0)
