"""AdaptedRows: what adapters add to a step, group by group of rows: slow and obvious, on any device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.torch.adapter import TorchAdapter, TorchPiece
from trierarch.python_backend.scheduling.plan import ScheduledSequence


@dataclass(frozen=True, slots=True)
class AdaptedRows:
    """The rows that are not the base model's."""

    groups: tuple[tuple[torch.Tensor, TorchAdapter], ...]
    """(numbers of rows, (n) int64; whose they are)."""

    @classmethod
    def of_step(cls, items: Sequence[ScheduledSequence], first_rows: Sequence[int]) -> AdaptedRows | None:
        """Of a step's tokens; None where all are the base model's."""
        return cls._of(
            (item.sequence.adapter, range(first, first + item.num_tokens + len(item.draft_token_ids)))
            for item, first in zip(items, first_rows, strict=True)
        )

    @classmethod
    def of_rows(cls, adapters: Sequence[ActiveAdapter | None]) -> AdaptedRows | None:
        """Of rows whose adapters are these; none at all is the base model's."""
        return cls._of((adapter, (row,)) for row, adapter in enumerate(adapters))

    @classmethod
    def _of(cls, owned: Iterable[tuple[ActiveAdapter | None, Iterable[int]]]) -> AdaptedRows | None:
        rows: dict[int, list[int]] = defaultdict(list)
        owners: dict[int, TorchAdapter] = {}
        for adapter, numbers in owned:
            if adapter is not None:
                assert isinstance(adapter.weights, TorchAdapter), "it was arranged by another runner"
                owners[adapter.slot] = adapter.weights
                rows[adapter.slot] += numbers
        groups = ((torch.tensor(rows[slot], device=owner.device), owner) for slot, owner in owners.items())
        return cls(tuple(groups)) if owners else None

    def add(self, name: str, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The output of the matrix `name`, adapted. x: (rows, in); y: (rows, out), W x + bias, which is changed."""
        for rows, own, pieces in self._of_matrix(name):
            if own is not None:
                y[rows] = functional.linear(x[rows], own, bias)
            for piece in pieces:
                base = y[rows, piece.first : piece.end]
                if piece.gain is not None:
                    shift = 0 if bias is None else bias[piece.first : piece.end]
                    base = ((base - shift).float() * piece.gain).to(y.dtype) + shift
                y[rows, piece.first : piece.end] = base + functional.linear(
                    functional.linear(x[rows], piece.a), piece.b
                )
        return y

    def embed(self, token_ids: torch.Tensor, x: torch.Tensor, scale: float) -> torch.Tensor:
        """Embeddings, adapted. token_ids: (rows); x: (rows, hidden), the model's own times `scale`, which is changed."""
        for rows, adapter in self.groups:
            tokens = token_ids[rows]
            if adapter.embedding is not None:
                x[rows] = functional.embedding(tokens, adapter.embedding) * scale
            if adapter.embedding_piece is not None:
                a, b = adapter.embedding_piece
                x[rows] += functional.linear(functional.embedding(tokens, a), b) * scale
        return x

    def _of_matrix(self, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, Sequence[TorchPiece]]]:
        for rows, adapter in self.groups:
            own = adapter.lm_head if name == "lm_head" else None
            pieces = adapter.pieces.get(name, ())
            if own is not None or pieces:
                yield rows, own, pieces
