"""Shard: one tensor of a TensorRT-LLM checkpoint, cut out of an engine weight of ours; nothing is read before it is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from trierarch.builder.checkpoint import Checkpoint
from trierarch.builder.weight import Entry, Weight

Range = tuple[int, int]
"""(begin, end)."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of a weight, one range after the other, cut to a range of its columns. Implements StoredTensor.

    Rows are counted as the weight stacks its sources; of experts, those of each follow each other.
    """

    name: str
    shape: tuple[int, ...]
    weight: Weight
    rows: tuple[Range, ...]
    columns: Range | None = None
    """None takes all of them."""

    @property
    def num_bytes(self) -> int:
        """Bytes in the checkpoint."""
        return self.entries[0].num_bytes

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The one tensor that it is stored as."""
        (stored,) = replace(self.weight, name=self.name, shape=self.shape).entries
        return (stored,)

    def parts(self, checkpoint: Checkpoint) -> Iterator[torch.Tensor]:
        """Piece by piece, contiguous and of the weight's type; rows beyond the last are zeros."""
        for begin, end in self.rows:
            yield from self._range(checkpoint, begin, end)

    def _range(self, checkpoint: Checkpoint, begin: int, end: int) -> Iterator[torch.Tensor]:
        first = 0
        for source in self.weight.sources:
            low, high = max(begin, first), min(end, first + source.shape[0])
            if low < high:
                (part,) = replace(self.weight, sources=(source,)).parts(checkpoint)
                yield self._cut(part[low - first : high - first])
            first += source.shape[0]
        missing = end - max(begin, first)
        if missing > 0:
            (last,) = replace(self.weight, sources=self.weight.sources[-1:]).parts(checkpoint)
            yield self._cut(last.new_zeros(missing, *last.shape[1:]))

    def _cut(self, rows: torch.Tensor) -> torch.Tensor:
        if self.columns is None:
            return rows.contiguous()
        return rows[:, self.columns[0] : self.columns[1]].contiguous()
