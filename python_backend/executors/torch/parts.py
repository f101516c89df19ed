"""Parts: how a decoder that is a part of one, on one rank of several, gets what the others have."""

from __future__ import annotations

from typing import Protocol

import torch

from trierarch.python_backend.executors.torch.adapted_rows import AdaptedRows


class Parts(Protocol):
    """The other parts. What all of them have, they have bit for bit."""

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """What the parts of a layer give, added up. x: (num_tokens, hidden), this one's, and so the result."""
        ...

    def receive(self, token_ids: torch.Tensor, adapted: AdaptedRows | None = None) -> torch.Tensor:
        """What the layers before this part's make of a step, in place of embeddings: (num_tokens, hidden)."""
        ...


class Whole:
    """A decoder that is all there is. Implements Parts."""

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """It is the sum already."""
        return x

    def receive(self, token_ids: torch.Tensor, adapted: AdaptedRows | None = None) -> torch.Tensor:
        """Never asked: it embeds."""
        raise AssertionError("a whole decoder has embeddings")
