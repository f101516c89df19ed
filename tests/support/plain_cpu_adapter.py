"""An adapter laid out for the kernels the slow, obvious way: tensor by tensor, each packed by a call of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Final

import numpy as np

from trierarch.builder.adapter import LAYER_PIECES, STACKED, AdapterTensors
from trierarch.builder.tensors import Array
from trierarch.python_backend.executors.cpu.abi import (
    AdaptedLayerStruct,
    AdapterStruct,
    Format,
    LinearStruct,
    MatrixStruct,
    PieceStruct,
)
from trierarch.python_backend.executors.cpu.arena import Arena, aligned


class PlainCpuAdapter:
    """What CpuAdapters.arrange is held against."""

    def __init__(self, library: ctypes.CDLL, num_layers: int, tensors: AdapterTensors) -> None:
        """Lay out an adapter that was checked against the engine."""
        self._library = library
        self._arrays = {name: _even(name, array) for name, array in tensors.arrays.items()}
        self.num_bytes = sum(aligned(self._num_bytes(name)) for name in self._arrays)
        self._arena = Arena(self.num_bytes)
        self._layers = (AdaptedLayerStruct * num_layers)(*[self._layer(index) for index in range(num_layers)])
        self._struct = AdapterStruct(
            z_width=_z_width(self._arrays, num_layers),
            layers=ctypes.addressof(self._layers),
            lm_head=self._pieces({"lm_head": "lm_head"}).get("lm_head", PieceStruct()),
            own_lm_head=self._own_lm_head(),
            embedding=self._copied("embed.weight"),
            embedding_rank=self._arrays["embed.a"].shape[1] if "embed.a" in self._arrays else 0,
            embedding_a=self._copied("embed.a"),
            embedding_b=self._copied("embed.b"),
        )
        del self._arrays
        self.address: Final = ctypes.addressof(self._struct)
        """Of the C struct."""

    def _layer(self, index: int) -> AdaptedLayerStruct:
        """The a of all pieces of a stacked matrix, then their b: each is read front to back."""
        layer = AdaptedLayerStruct(data=self._arena.take(0))
        for pieces in STACKED.values():
            structs = self._pieces({piece: f"layers.{index}.{piece}" for piece in pieces if piece in LAYER_PIECES})
            for piece, struct in structs.items():
                setattr(layer, piece, struct)
        layer.num_bytes = self._arena.take(0) - layer.data
        return layer

    def _pieces(self, names: Mapping[str, str]) -> dict[str, PieceStruct]:
        """Piece -> its struct, for those that are adapted. names: piece -> the name of its tensors."""
        adapted = {piece: name for piece, name in names.items() if f"{name}.a" in self._arrays}
        a = {piece: self._copied(f"{name}.a") for piece, name in adapted.items()}
        return {
            piece: PieceStruct(
                rank=len(self._arrays[f"{name}.a"]),
                a=a[piece],
                b=self._packed(f"{name}.b"),
                gain=self._copied(f"{name}.gain"),
            )
            for piece, name in adapted.items()
        }

    def _own_lm_head(self) -> LinearStruct:
        name = "lm_head.weight"
        if name not in self._arrays:
            return LinearStruct()
        return LinearStruct(format=_matrix(self._arrays[name]).format, weight=self._packed(name))

    def _copied(self, name: str) -> int | None:
        """Address of a copy of a tensor; None where there is none of that name."""
        array = self._arrays.get(name)
        if array is None:
            return None
        address = self._arena.take(array.nbytes)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        return address

    def _packed(self, name: str) -> int:
        matrix = _matrix(self._arrays[name])
        address = self._arena.take(self._num_bytes(name))
        self._library.trierarch_pack(ctypes.byref(matrix), address, 1)
        return address

    def _num_bytes(self, name: str) -> int:
        array = self._arrays[name]
        if not _is_packed(name):
            return array.nbytes
        return int(self._library.trierarch_packed_bytes(ctypes.byref(_matrix(array))))


def _is_packed(name: str) -> bool:
    return name == "lm_head.weight" or (name.endswith(".b") and name != "embed.b")


def _even(name: str, array: Array) -> Array:
    """With ranks of zeros where the kernels want an even number; contiguous."""
    axis = 0 if name.endswith(".a") else 1
    if name.endswith((".a", ".b")) and not name.startswith("embed.") and array.shape[axis] % 2:
        widths = [(0, 0), (0, 0)]
        widths[axis] = (0, 1)
        array = np.pad(array, widths)
    return np.ascontiguousarray(array)


def _matrix(array: Array) -> MatrixStruct:
    out_features, in_features = array.shape
    matrix_format = Format.FLOAT32 if array.dtype == np.float32 else Format.BFLOAT16
    return MatrixStruct(
        format=matrix_format, out_features=out_features, in_features=in_features, codes=array.ctypes.data
    )


def _z_width(arrays: Mapping[str, Array], num_layers: int) -> int:
    def width(prefix: str, pieces: tuple[str, ...]) -> int:
        return sum(len(arrays[name]) for piece in pieces if (name := f"{prefix}{piece}.a") in arrays)

    prefixes = ["", *(f"layers.{index}." for index in range(num_layers))]
    return max(width(prefix, pieces) for prefix in prefixes for pieces in STACKED.values())
