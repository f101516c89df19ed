"""Residual: hidden states that a layer adds to."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Residual:
    """x + added, not worked out: what normalises it next does so on the way, reading both once."""

    x: torch.Tensor  # (num_tokens, hidden)
    added: torch.Tensor | None = None  # likewise

    def total(self) -> torch.Tensor:
        """(num_tokens, hidden), in x's type."""
        return self.x if self.added is None else self.x + self.added
