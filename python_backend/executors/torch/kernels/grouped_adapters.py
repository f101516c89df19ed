"""GroupedAdapters: all adapters of a step at once, by kernels of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import triton

from trierarch.builder.manifest import Architecture, Lora
from trierarch.python_backend.executors.torch.adapted_rows import OwnedRows
from trierarch.python_backend.executors.torch.device import on_device
from trierarch.python_backend.executors.torch.kernels import grouped_lora
from trierarch.python_backend.executors.torch.kernels.slot_table import AdaptableMatrix, SlotTable

_SMALL_TILE: Final = 16
"""Rows of a tile: a tensor core multiplies no fewer."""
_LARGE_TILE: Final = 64
_MAX_BLOCK_R: Final = 64
_BLOCK_N: Final = 64
_BLOCK_K: Final = 64
_INPUTS_PER_SPLIT: Final = 1024
"""Of shrink. Few rows keep few processors busy, so long inputs are shared out; by the matrix alone, so that grids depend on
the number of tiles and on nothing else of a step."""
_MAX_SPLITS: Final = 8
_OPTIONS: Final = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
"""Of the compiler. None was chosen by a measurement yet."""


class GroupedAdapters:
    """Implements StaticAdapterBackend."""

    label = "our kernels"

    def __init__(self, architecture: Architecture, lora: Lora, device: torch.device) -> None:
        """For an engine that takes adapters."""
        self._table = SlotTable(architecture, lora.max_adapters, device)
        self._max_adapters = lora.max_adapters
        self._block_r = min(_MAX_BLOCK_R, max(16, triton.next_power_of_2(lora.max_rank)))
        self._max_rank = -(-lora.max_rank // self._block_r) * self._block_r
        self._device = device

    def adapt(self, owned: Sequence[OwnedRows]) -> GroupedRows | None:
        """See AdapterBackend.adapt."""
        if not owned:
            return None
        self._table.hold(owned)
        most = max(len(one.numbers) for one in owned)
        tile_rows = min(_LARGE_TILE, max(_SMALL_TILE, triton.next_power_of_2(most)))
        return self._rows(owned, tile_rows, triton.next_power_of_2(num_tiles_of(owned, tile_rows)), self._device)

    def adapt_static(self, owned: Sequence[OwnedRows], num_rows: int, device: torch.device) -> GroupedRows | None:
        """See StaticAdapterBackend.adapt_static. Tiles are small whatever is in them."""
        if not owned:
            return None
        self._table.hold(owned)
        num_tiles = num_tiles_of(owned, _SMALL_TILE)
        # A draft model's engine may know of fewer adapters than there are.
        room = next((one for one in self._rooms(num_rows) if one >= num_tiles), triton.next_power_of_2(num_tiles))
        return self._rows(owned, _SMALL_TILE, room, device)

    def mixes(self, num_rows: int) -> list[list[int]]:
        """See StaticAdapterBackend.mixes."""
        mixes, fewest = [], 1
        for room in self._rooms(num_rows):
            num_adapters = min(fewest, self._max_adapters)
            rest = (fewest - num_adapters) * _SMALL_TILE + 1
            mixes.append([*range(1, num_adapters), *[num_adapters] * rest])
            fewest = room + 1
        return mixes

    def _rooms(self, num_rows: int) -> list[int]:
        """How many tiles a static step may have: 1, 4, 16, ..., and the most that one of `num_rows` rows is cut into.

        Tiles too many are programs that end at once; each number is a graph.
        """
        num_adapters = min(num_rows, self._max_adapters)
        most = num_adapters + (num_rows - num_adapters) // _SMALL_TILE
        return [room for exponent in range(most.bit_length()) if 2 * (room := 4**exponent) <= most] + [most]

    def _rows(self, owned: Sequence[OwnedRows], tile_rows: int, num_tiles: int, device: torch.device) -> GroupedRows:
        tiles = torch.from_numpy(tiles_of(owned, tile_rows, num_tiles))
        return GroupedRows(self._table, on_device(tiles, device), self._max_rank, self._block_r)


def num_tiles_of(owned: Sequence[OwnedRows], tile_rows: int) -> int:
    """That they are cut into."""
    return sum(triton.cdiv(len(one.numbers), tile_rows) for one in owned)


def tiles_of(
    owned: Sequence[OwnedRows], tile_rows: int, num_tiles: int
) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """(num_tiles, 1 + tile_rows): a slot, and rows of its adapter, -1 for none. Tiles of slot 0 have none."""
    cut = [
        (one.slot, one.numbers[first : first + tile_rows])
        for one in owned
        for first in range(0, len(one.numbers), tile_rows)
    ]
    tiles = np.full((num_tiles, 1 + tile_rows), -1, dtype=np.int32)
    tiles[:, 0] = 0
    for tile, (slot, numbers) in zip(tiles, cut, strict=False):
        tile[0] = slot
        tile[1 : 1 + len(numbers)] = numbers
    return tiles


@dataclass(frozen=True, slots=True)
class GroupedRows:
    """Implements StaticAdaptedRows. Every matrix is launched for, whether a slot's adapter has it or not: kernels look that up."""

    table: SlotTable
    tiles: torch.Tensor  # as `tiles_of`
    max_rank: int
    """Of any piece, rounded up to blocks."""
    block_r: int

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """See StaticAdaptedRows.tensors. The table is the same for all steps."""
        return (self.tiles,)

    @property
    def constants(self) -> tuple[int, ...]:
        """See StaticAdaptedRows.constants. A longer table lies elsewhere."""
        return *self.tiles.shape, len(self.table.entries)

    def add(self, name: str, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See AdaptedRows.add."""
        matrix = self.table.matrices.get(name)
        if matrix is not None:
            assert y.stride(1) == 1
            x = x if x.stride(1) == 1 else x.contiguous()
            if name == "lm_head":
                self._replace(x, y, bias)
            self._add(matrix, x, y, bias)
        return y

    def embed(self, token_ids: torch.Tensor, x: torch.Tensor, scale: float) -> torch.Tensor:
        """See AdaptedRows.embed."""
        grouped_lora.embed[(len(self.tiles), triton.cdiv(x.shape[1], _BLOCK_N))](
            x,
            token_ids,
            self.tiles,
            self.table.entries,
            self.table.embed,
            self.table.whole_embed,
            self.table.num_entries,
            x.stride(0),
            x.shape[1],
            scale,
            BLOCK_M=self._tile_rows,
            BLOCK_R=self.block_r,
            BLOCK_N=_BLOCK_N,
            **_OPTIONS,
        )
        return x

    @property
    def _tile_rows(self) -> int:
        return self.tiles.shape[1] - 1

    def _add(self, matrix: AdaptableMatrix, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None) -> None:
        num_tiles, num_inputs = len(self.tiles), x.shape[1]
        num_splits = min(_MAX_SPLITS, triton.next_power_of_2(triton.cdiv(num_inputs, _INPUTS_PER_SPLIT)))
        sizes = {
            "MAX_RANK": self.max_rank,
            "BLOCK_M": self._tile_rows,
            "BLOCK_R": self.block_r,
            "SPLITS": num_splits,
        }
        h = torch.empty(
            (num_tiles, matrix.num_pieces, num_splits, self._tile_rows, self.max_rank),
            dtype=torch.float32,
            device=x.device,
        )
        grouped_lora.shrink[(num_tiles, matrix.num_pieces * (self.max_rank // self.block_r), num_splits)](
            h,
            x,
            self.tiles,
            self.table.entries,
            matrix.entry,
            self.table.num_entries,
            x.stride(0),
            num_inputs,
            BLOCK_K=_BLOCK_K,
            **sizes,
            **_OPTIONS,
        )
        grouped_lora.expand[(num_tiles, matrix.num_pieces, triton.cdiv(matrix.widest, _BLOCK_N))](
            y,
            h,
            bias,
            self.tiles,
            self.table.entries,
            matrix.bounds,
            matrix.entry,
            self.table.num_entries,
            y.stride(0),
            HAS_BIAS=bias is not None,
            BLOCK_N=_BLOCK_N,
            **sizes,
            **_OPTIONS,
        )

    def _replace(self, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None) -> None:
        grouped_lora.replace[(len(self.tiles), triton.cdiv(y.shape[1], _BLOCK_N))](
            y,
            x,
            bias,
            self.tiles,
            self.table.entries,
            self.table.whole_lm_head,
            self.table.num_entries,
            x.stride(0),
            y.stride(0),
            x.shape[1],
            y.shape[1],
            HAS_BIAS=bias is not None,
            BLOCK_M=self._tile_rows,
            BLOCK_N=_BLOCK_N,
            BLOCK_K=_BLOCK_K,
            **_OPTIONS,
        )
