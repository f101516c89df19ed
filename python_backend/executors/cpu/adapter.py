"""CpuAdapter: an adapter's weights as the kernels read them."""

from __future__ import annotations

import ctypes
import weakref
from functools import lru_cache, partial
from typing import Final

import numpy as np

from trierarch.builder.adapter import AdapterTensors
from trierarch.builder.errors import ResourceError
from trierarch.builder.safetensors_header import TensorTable
from trierarch.builder.tensors import Tensors, headers_of
from trierarch.python_backend.executors.cpu.adapter_layout import AdapterLayout, Words
from trierarch.python_backend.executors.cpu.arena_pool import ArenaPool

_MAX_LAYOUTS: Final = 16
"""An engine's adapters are of few kinds."""


class CpuAdapter:
    """All of an adapter in one arena. Implements Arranged."""

    def __init__(self, arenas: ArenaPool, num_bytes: int) -> None:
        """Take an arena, for CpuAdapters to fill.

        Raises:
            ResourceError: there is no room.
        """
        arena = arenas.take(num_bytes)
        self.num_bytes: Final = num_bytes
        self.address: Final = arena.begin
        """Of the C struct."""
        weakref.finalize(self, arenas.give_back, arena).atexit = False


class CpuAdapters:
    """Lays adapters out for one engine, on the calling thread; its other threads are at work on steps."""

    def __init__(self, library: ctypes.CDLL, num_layers: int) -> None:
        """Nothing is laid out."""
        self._library = library
        self._num_layers = num_layers
        self._arenas = ArenaPool()
        self._plan_of = lru_cache(_MAX_LAYOUTS)(partial(_plan, library, num_layers))

    def arrange(self, tensors: AdapterTensors) -> CpuAdapter:
        """An adapter that was checked against the engine. `tensors` may vanish after.

        Raises:
            ResourceError: there is no room.
        """
        arrays = tensors.arrays
        if isinstance(arrays, Tensors):
            layout, offsets = self._plan_of(arrays.table)
            content = arrays.content()
            return self._laid_out(layout, offsets + np.uint64(content.ctypes.data))
        layout = AdapterLayout(self._library, self._num_layers, headers_of(arrays))
        kept = [np.ascontiguousarray(arrays[name]) for name in layout.names]
        return self._laid_out(layout, np.array([array.ctypes.data for array in kept], np.uint64))

    def _laid_out(self, layout: AdapterLayout, sources: Words) -> CpuAdapter:
        adapter = CpuAdapter(self._arenas, layout.num_bytes)
        structs, moves = layout.structs_at(adapter.address), layout.moves_to(adapter.address, sources)
        ctypes.memmove(adapter.address, structs.ctypes.data, structs.nbytes)
        if self._library.trierarch_move(moves.ctypes.data, len(moves)):
            raise ResourceError(f"no room to lay out an adapter of {layout.num_bytes} bytes: free some memory")
        return adapter


def _plan(library: ctypes.CDLL, num_layers: int, table: TensorTable) -> tuple[AdapterLayout, Words]:
    """Layout, and where in a file's bytes the tensors are that it names."""
    layout = AdapterLayout(library, num_layers, table.headers)
    return layout, np.array([table.places[name].begin for name in layout.names], np.uint64)
