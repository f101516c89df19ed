"""AdaptedRows: what adapters add to a step, whoever computes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.torch.adapter import TorchAdapter
from trierarch.python_backend.scheduling.plan import ScheduledSequence


@dataclass(frozen=True, slots=True)
class OwnedRows:
    """Rows that run with one adapter."""

    numbers: tuple[int, ...]
    slot: int
    """As ActiveAdapter.slot."""
    owner: TorchAdapter


class AdaptedRows(Protocol):
    """The rows of a step that are not the base model's, and what becomes of them."""

    def add(self, name: str, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The output of the matrix `name`, adapted. x: (rows, in); y: (rows, out), W x + bias, which is changed."""
        ...

    def embed(self, token_ids: torch.Tensor, x: torch.Tensor, scale: float) -> torch.Tensor:
        """Embeddings, adapted. token_ids: (rows); x: (rows, hidden), the model's own times `scale`, which is changed."""
        ...


class AdapterBackend(Protocol):
    """Who computes what adapters add."""

    @property
    def label(self) -> str:
        """For people."""
        ...

    def adapt(self, owned: Sequence[OwnedRows]) -> AdaptedRows | None:
        """None where all rows are the base model's."""
        ...


@runtime_checkable
class StaticAdaptedRows(AdaptedRows, Protocol):
    """A step's adapted rows that become another step's when their tensors are overwritten."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that differs between steps of the same constants."""
        ...

    @property
    def constants(self) -> tuple[int, ...]:
        """All else."""
        ...


class StaticAdapterBackend(AdapterBackend, Protocol):
    """One whose steps can be recorded."""

    def adapt_static(self, owned: Sequence[OwnedRows], num_rows: int, device: torch.device) -> StaticAdaptedRows | None:
        """`adapt`, its tensors on `device`, for a step of `num_rows` rows: many mixes of adapters have the same constants."""
        ...

    def mixes(self, num_rows: int) -> Sequence[Sequence[int]]:
        """Of all constants that steps of `num_rows` rows may have, one mix each: slots of rows, from the first on."""
        ...


def rows_of_step(items: Sequence[ScheduledSequence], first_rows: Sequence[int]) -> list[OwnedRows]:
    """Of a step's tokens, those that are not the base model's."""
    return _grouped(
        (item.sequence.adapter, range(first, first + item.num_tokens + len(item.draft_token_ids)))
        for item, first in zip(items, first_rows, strict=True)
    )


def rows_of(adapters: Sequence[ActiveAdapter | None]) -> list[OwnedRows]:
    """Of rows whose adapters are these; none at all is the base model's."""
    return _grouped((adapter, (row,)) for row, adapter in enumerate(adapters))


def _grouped(owned: Iterable[tuple[ActiveAdapter | None, Iterable[int]]]) -> list[OwnedRows]:
    rows: dict[int, list[int]] = defaultdict(list)
    owners: dict[int, TorchAdapter] = {}
    for adapter, numbers in owned:
        if adapter is not None:
            assert isinstance(adapter.weights, TorchAdapter), "it was arranged by another runner"
            owners[adapter.slot] = adapter.weights
            rows[adapter.slot] += numbers
    return [OwnedRows(tuple(rows[slot]), slot, owner) for slot, owner in owners.items()]
