"""Packer: an engine's weights laid out for the kernels, in one arena."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from trierarch.builder.tensors import Array
from trierarch.python_backend.executors.cpu.abi import LinearStruct, MatrixStruct
from trierarch.python_backend.executors.cpu.arena import Arena, aligned
from trierarch.python_backend.executors.cpu.weights import Weight, Weights

Release = Callable[[Array], None]


class Packer:
    """Lays matrices out and keeps alive what the kernels point to."""

    def __init__(self, library: ctypes.CDLL, weights: Weights, num_threads: int, release: Release) -> None:
        """`release` gets each stored array once it is packed.

        Raises:
            ResourceError: there is no room for the packed weights.
        """
        self._library = library
        self._weights = weights
        self._num_threads = num_threads
        self._release = release
        self._matrices = {name: _matrix(name, weight) for name, weight in weights.items() if _is_packed(name, weights)}
        self._arena = Arena(sum(aligned(self._num_bytes(matrix)) for matrix in self._matrices.values()))
        self.kept: list[Array | Arena] = [self._arena]
        """What must live as long as the decoder."""

    def linear(self, name: str) -> LinearStruct:
        """Pack `name`.weight; its bias comes along as float32."""
        matrix = self._matrices.pop(f"{name}.weight")
        address = self._arena.take(self._num_bytes(matrix))
        self._library.trierarch_pack(ctypes.byref(matrix), address, self._num_threads)
        for array in self._weights[f"{name}.weight"].arrays:
            self._release(array)
        return LinearStruct(format=matrix.format, weight=address, bias=self.floats(f"{name}.bias"))

    def floats(self, name: str) -> int | None:
        """Address of a small weight in float32, None where there is none."""
        return self._keep(self._weights[name].floats()) if name in self._weights else None

    def address(self, name: str) -> int:
        """Address of a weight as it is."""
        return self._keep(self._weights[name].elements.copy())

    def _keep(self, array: Array) -> int:
        self.kept.append(array)
        return array.ctypes.data

    def _num_bytes(self, matrix: MatrixStruct) -> int:
        return int(self._library.trierarch_packed_bytes(ctypes.byref(matrix)))


def _matrix(name: str, weight: Weight) -> MatrixStruct:
    """A matrix for the kernels, which points into `weight`."""
    out_features, in_features = weight.shape
    return MatrixStruct(
        format=weight.format,
        out_features=out_features,
        in_features=in_features,
        is_gated=name.endswith("gate_up.weight"),
        codes=weight.elements.ctypes.data,
        scales=None if weight.scales is None else weight.scales.ctypes.data,
        offsets=None if weight.offsets is None else weight.offsets.ctypes.data,
    )


def _is_packed(name: str, weights: Weights) -> bool:
    if name == "embed.weight":
        return "lm_head.weight" not in weights  # tied: the packed head serves look-ups too
    return len(weights[name].shape) == 2
