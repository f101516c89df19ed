"""AdapterLayout: where the tensors of adapters of one kind lie in memory, worked out once for all of them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trierarch.builder.adapter import LAYER_PIECES, STACKED
from trierarch.builder.safetensors_header import Header
from trierarch.builder.tensors import size_of
from trierarch.python_backend.executors.cpu.abi import (
    AdaptedLayerStruct,
    AdapterStruct,
    Format,
    LinearStruct,
    MatrixStruct,
    MoveStruct,
    PieceStruct,
)
from trierarch.python_backend.executors.cpu.arena import aligned

Words = npt.NDArray[np.uint64]

_ELEMENTS: Final = {"F32": Format.FLOAT32, "BF16": Format.BFLOAT16}
_MOVE: Final[np.dtype[Any]] = np.dtype(MoveStruct)


class AdapterLayout:
    """Of adapters whose tensors have the same names, types and shapes.

    The structs, then the tensors in the order a step reads them, all at fixed distances from a *base*, an address on a
    cache line.
    """

    def __init__(self, library: ctypes.CDLL, num_layers: int, headers: Mapping[str, Header]) -> None:
        """Of tensors that were checked against the engine."""
        self._library = library
        self._headers = headers
        self._num_layers = num_layers
        self._offsets: dict[str, int] = {}  # tensor -> bytes from the base
        self._layers: list[tuple[int, int]] = []  # begin and end of each
        self._end = aligned(ctypes.sizeof(AdapterStruct) + num_layers * ctypes.sizeof(AdaptedLayerStruct))
        moves: list[MoveStruct] = []
        for index in range(num_layers):
            begin = self._end
            for pieces in STACKED.values():
                stems = [f"layers.{index}.{piece}" for piece in pieces if piece in LAYER_PIECES]
                moves += self._place(_reading_order(stems))
            self._layers.append((begin, self._end))
        moves += self._place(_reading_order(["lm_head"]))
        moves += self._place(("lm_head.weight", "embed.weight", "embed.a", "embed.b"))
        self.names: Final = tuple(self._offsets)
        """Of the tensors, in order."""
        self.num_bytes: Final = self._end
        """Of the structs and the tensors."""
        self._moves: npt.NDArray[Any] = np.frombuffer(b"".join(map(bytes, moves)), _MOVE)
        self._structs = self.structs(0)
        self._is_address = self.structs(1) != self._structs

    def structs(self, base: int) -> Words:
        """An AdapterStruct and its layers behind it, of an adapter at `base`: the slow, obvious way."""
        layers = [self._layer(index, base) for index in range(self._num_layers)]
        lm_head, own_lm_head = self._piece("lm_head", base), LinearStruct()
        if "lm_head.weight" in self._headers:
            element, _, _ = self._matrix("lm_head.weight")
            own_lm_head = LinearStruct(format=element, weight=self._address("lm_head.weight", base))
        adapter = AdapterStruct(
            z_width=self._z_width(),
            layers=base + ctypes.sizeof(AdapterStruct),
            lm_head=lm_head,
            own_lm_head=own_lm_head,
            embedding=self._address("embed.weight", base),
            embedding_rank=self._matrix("embed.a")[2] if "embed.a" in self._headers else 0,
            embedding_a=self._address("embed.a", base),
            embedding_b=self._address("embed.b", base),
        )
        return np.frombuffer(bytes(adapter) + bytes((AdaptedLayerStruct * len(layers))(*layers)), np.uint64)

    def structs_at(self, base: int) -> Words:
        """`structs`, from what was worked out before: what is an address moves with the base."""
        moved: Words = self._structs + self._is_address * np.uint64(base)
        return moved

    def moves_to(self, base: int, sources: Words) -> npt.NDArray[Any]:
        """MoveStructs that bring an adapter to `base`. sources: addresses of its tensors, in the order of `names`."""
        moves: npt.NDArray[Any] = self._moves.copy()
        moves["source"] = sources
        moves["target"] += np.uint64(base)
        return moves

    def _place(self, names: Iterable[str]) -> list[MoveStruct]:
        """Put those that there are behind what is there already."""
        moves = []
        for name in names:
            if name not in self._headers:
                continue
            element, rows, columns = self._matrix(name)
            num_zero_bytes = size_of(self._headers[name]) // rows if _is_evened_row(name) and rows % 2 else 0
            moves.append(MoveStruct(None, self._end, element, rows, columns, _is_packed(name), num_zero_bytes))
            self._offsets[name] = self._end
            self._end += aligned(self._num_bytes(name, num_zero_bytes))
        return moves

    def _num_bytes(self, name: str, num_zero_bytes: int) -> int:
        if not _is_packed(name):
            return size_of(self._headers[name]) + num_zero_bytes
        element, rows, columns = self._matrix(name)
        matrix = MatrixStruct(format=element, out_features=rows, in_features=_even(columns))
        return int(self._library.trierarch_packed_bytes(ctypes.byref(matrix)))

    def _layer(self, index: int, base: int) -> AdaptedLayerStruct:
        begin, end = self._layers[index]
        pieces = {piece: self._piece(f"layers.{index}.{piece}", base) for piece in LAYER_PIECES}
        return AdaptedLayerStruct(**pieces, data=base + begin, num_bytes=end - begin)

    def _piece(self, stem: str, base: int) -> PieceStruct:
        a, b, gain = (self._address(f"{stem}.{part}", base) for part in ("a", "b", "gain"))
        return PieceStruct(rank=self._rank(stem), a=a, b=b, gain=gain)

    def _rank(self, stem: str) -> int:
        """As the kernels want it, even; 0 where there is no a and b."""
        name = f"{stem}.a"
        return _even(self._matrix(name)[1]) if name in self._headers else 0

    def _z_width(self) -> int:
        prefixes = ["", *(f"layers.{index}." for index in range(self._num_layers))]
        return max(sum(self._rank(prefix + one) for one in stack) for prefix in prefixes for stack in STACKED.values())

    def _address(self, name: str, base: int) -> int | None:
        return base + self._offsets[name] if name in self._offsets else None

    def _matrix(self, name: str) -> tuple[int, int, int]:
        """Element, rows and columns of a tensor."""
        dtype, shape = self._headers[name]
        rows, columns = shape if len(shape) == 2 else (1, *shape)
        return _ELEMENTS[dtype], rows, columns


def _reading_order(stems: list[str]) -> Iterator[str]:
    """The a of all pieces of a stacked matrix, then their b: each is read front to back."""
    yield from (f"{stem}.a" for stem in stems)
    yield from (f"{stem}.{part}" for stem in stems for part in ("b", "gain"))


def _is_packed(name: str) -> bool:
    return name == "lm_head.weight" or (name.endswith(".b") and name != "embed.b")


def _is_evened_row(name: str) -> bool:
    """Whether a row of zeros follows where rows are odd; of what is packed it is a column."""
    return name.endswith(".a") and name != "embed.a"


def _even(count: int) -> int:
    return count + count % 2
