"""SlotTable: where on the device each slot's adapter lies, for kernels to look up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final
from weakref import ReferenceType, ref

import torch

from trierarch.builder.adapter import STACKED, piece_shape
from trierarch.builder.manifest import Architecture
from trierarch.python_backend.executors.torch.adapted_rows import OwnedRows
from trierarch.python_backend.executors.torch.adapter import TorchAdapter
from trierarch.python_backend.executors.torch.device import on_device

Entry = tuple[int, int, int, int]
"""The addresses of a, b and gain, 0 where there is none, and the rank. A matrix trained whole has its address in a's place."""
_NOTHING: Final[Entry] = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class AdaptableMatrix:
    """A matrix of the engine as the kernels see it."""

    entry: int
    """Of its first piece; those of the others follow."""
    first_columns: tuple[int, ...]
    """Of each piece's output, and behind them the end."""
    bounds: torch.Tensor  # (pieces + 1) int32: the same on the device

    @property
    def num_pieces(self) -> int:
        """1 to 3."""
        return len(self.first_columns) - 1

    @property
    def widest(self) -> int:
        """Columns of the widest piece."""
        return max(end - first for first, end in zip(self.first_columns, self.first_columns[1:], strict=False))


class SlotTable:
    """Written when an adapter comes into a slot, read by every step. It keeps no adapter in memory."""

    def __init__(self, architecture: Architecture, max_adapters: int, device: torch.device) -> None:
        """All slots empty; slot 0, which is nobody's, stays so."""
        prefixes = [f"layers.{index}." for index in range(architecture.num_layers)]
        names = [(prefix, stacked) for prefix in prefixes for stacked in STACKED if stacked != "lm_head"]
        shapes = {stacked: _first_columns(architecture, pieces) for stacked, pieces in STACKED.items()}
        bounds = {
            stacked: torch.tensor(columns, dtype=torch.int32, device=device) for stacked, columns in shapes.items()
        }
        matrices, num_entries = {}, 0
        for prefix, stacked in (*names, ("", "lm_head")):
            matrix = AdaptableMatrix(num_entries, shapes[stacked], bounds[stacked])
            matrices[prefix + stacked] = matrix
            num_entries += matrix.num_pieces
        self.matrices: Mapping[str, AdaptableMatrix] = matrices
        """By the names that AdaptableLinear knows."""
        self.whole_lm_head, self.embed, self.whole_embed = range(num_entries, num_entries + 3)
        self.num_entries = num_entries + 3
        self.entries = torch.zeros((max_adapters + 1, self.num_entries, 4), dtype=torch.int64, device=device)
        """Of each slot, as `Entry` has them. Another tensor once there are more slots."""
        self._held: dict[int, ReferenceType[TorchAdapter]] = {}

    def hold(self, owned: Iterable[OwnedRows]) -> None:
        """Write what the table does not have yet of these slots. Their adapters must outlive the step."""
        for one in owned:
            if one.slot >= len(self.entries):  # a draft model's adapters have the slots of its target's
                # Twice as many, since a table elsewhere costs steps that were recorded.
                self.entries = torch.cat((self.entries, self.entries.new_zeros((one.slot + 1, self.num_entries, 4))))
            held = self._held.get(one.slot)
            if held is None or held() is not one.owner:
                self.entries[one.slot].copy_(on_device(torch.tensor(self._entries_of(one.owner)), self.entries.device))
                self._held[one.slot] = ref(one.owner)

    def _entries_of(self, adapter: TorchAdapter) -> list[Entry]:
        entries = [_NOTHING] * self.num_entries
        for name, matrix in self.matrices.items():
            for piece in adapter.pieces.get(name, ()):
                entries[matrix.entry + matrix.first_columns.index(piece.first)] = (
                    piece.a.data_ptr(),
                    piece.b.data_ptr(),
                    0 if piece.gain is None else piece.gain.data_ptr(),
                    piece.b.shape[1],
                )
        if adapter.embedding_piece is not None:
            a, b = adapter.embedding_piece
            entries[self.embed] = (a.data_ptr(), b.data_ptr(), 0, b.shape[1])
        for entry, whole in ((self.whole_lm_head, adapter.lm_head), (self.whole_embed, adapter.embedding)):
            if whole is not None:
                entries[entry] = (whole.data_ptr(), 0, 0, 0)
        return entries


def _first_columns(architecture: Architecture, pieces: Iterable[str]) -> tuple[int, ...]:
    return tuple(accumulate((piece_shape(architecture, piece)[0] for piece in pieces), initial=0))
