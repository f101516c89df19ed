"""LoopedAdapters: adapter after adapter by torch's own operators: slow and obvious, on any device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from trierarch.python_backend.executors.torch.adapted_rows import OwnedRows
from trierarch.python_backend.executors.torch.adapter import TorchAdapter, TorchPiece
from trierarch.python_backend.executors.torch.device import on_device


class LoopedAdapters:
    """The reference. Implements AdapterBackend."""

    label = "torch's operators"

    def adapt(self, owned: Sequence[OwnedRows]) -> LoopedRows | None:
        """See AdapterBackend.adapt."""
        groups = tuple((on_device(torch.tensor(one.numbers), one.owner.device), one.owner) for one in owned)
        return LoopedRows(groups) if groups else None


@dataclass(frozen=True, slots=True)
class LoopedRows:
    """Implements AdaptedRows."""

    groups: tuple[tuple[torch.Tensor, TorchAdapter], ...]
    """(numbers of rows, (n) int64; whose they are)."""

    def add(self, name: str, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See AdaptedRows.add."""
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
        """See AdaptedRows.embed."""
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
