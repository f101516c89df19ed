"""Packer: an engine's weights laid out for the kernels, in one arena."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Final

import torch

from trierarch.python_backend.executors.cpu.abi import Format, LinearStruct, MatrixStruct
from trierarch.python_backend.executors.cpu.arena import Arena, aligned
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix

Weights = Mapping[str, torch.Tensor | QuantizedMatrix]
Release = Callable[[torch.Tensor], None]

_QUANTIZED: Final = {8: Format.INT8, 4: Format.INT4}


class Packer:
    """Lays matrices out and keeps alive what the kernels point to."""

    def __init__(
        self, library: ctypes.CDLL, element: Format, weights: Weights, num_threads: int, release: Release
    ) -> None:
        """element: of matrices that are not quantised. `release` gets each stored tensor once it is packed.

        Raises:
            ResourceError: there is no room for the packed weights.
        """
        self._library = library
        self._element = element
        self._weights = weights
        self._num_threads = num_threads
        self._release = release
        self._matrices = {
            name: self._matrix(name, weight) for name, weight in weights.items() if _is_packed(name, weights)
        }
        self._arena = Arena(sum(aligned(self._num_bytes(matrix)) for matrix, _ in self._matrices.values()))
        self.kept: list[torch.Tensor | Arena] = [self._arena]
        """What must live as long as the decoder."""

    def linear(self, name: str) -> LinearStruct:
        """Pack `name`.weight; its bias comes along as float32."""
        matrix, tensors = self._matrices.pop(f"{name}.weight")
        address = self._arena.take(self._num_bytes(matrix))
        self._library.trierarch_pack(ctypes.byref(matrix), address, self._num_threads)
        for tensor in tensors:
            self._release(tensor)
        return LinearStruct(format=matrix.format, weight=address, bias=self.floats(f"{name}.bias"))

    def floats(self, name: str) -> int | None:
        """Address of a small weight in float32, None where there is none."""
        return self._keep(_plain(self._weights[name]).float()) if name in self._weights else None

    def address(self, name: str) -> int:
        """Address of a weight as it is."""
        return self._keep(_plain(self._weights[name]))

    def _keep(self, weight: torch.Tensor) -> int:
        kept = weight.contiguous().clone()
        self.kept.append(kept)
        return kept.data_ptr()

    def _matrix(self, name: str, weight: torch.Tensor | QuantizedMatrix) -> tuple[MatrixStruct, list[torch.Tensor]]:
        """A matrix for the kernels, and the tensors that it points into."""
        if isinstance(weight, QuantizedMatrix):
            stored, matrix_format = [weight.codes, weight.scales, weight.offsets], _QUANTIZED[weight.bits]
        else:
            stored, matrix_format = [weight, None, None], self._element
        tensors = [None if tensor is None else tensor.contiguous() for tensor in stored]
        codes, scales, offsets = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        out_features, in_features = weight.shape
        matrix = MatrixStruct(
            format=matrix_format,
            out_features=out_features,
            in_features=in_features,
            is_gated=name.endswith("gate_up.weight"),
            codes=codes,
            scales=scales,
            offsets=offsets,
        )
        return matrix, [tensor for tensor in tensors if tensor is not None]

    def _num_bytes(self, matrix: MatrixStruct) -> int:
        return int(self._library.trierarch_packed_bytes(ctypes.byref(matrix)))


def _is_packed(name: str, weights: Weights) -> bool:
    if name == "embed.weight":
        return "lm_head.weight" not in weights  # tied: the packed head serves look-ups too
    return len(weights[name].shape) == 2


def _plain(weight: torch.Tensor | QuantizedMatrix) -> torch.Tensor:
    assert isinstance(weight, torch.Tensor), (
        "norms, biases, frequencies and embeddings that only look up are never quantised"
    )
    return weight
