"""Random matrices of codes of every kind."""

from __future__ import annotations

from typing import Final

import torch

from trierarch.builder.manifest import GROUP_SIZE
from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix

KINDS: Final = ("int8", "int4", "fp8")


def coded_matrix(
    kind: str, num_outputs: int, num_inputs: int, seed: int = 0, device: torch.device | None = None
) -> QuantizedMatrix | Fp8Matrix:
    """Of elements of about the size that products of unit rows by it are of unit size. device: the CPU unless said."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_outputs, num_inputs // GROUP_SIZE)
    if kind == "fp8":
        bits = torch.randint(256, (num_outputs, num_inputs), generator=generator).to(torch.uint8)
        bits[bits & 127 == 127] = 0  # not a number
        scales = torch.rand(num_outputs, generator=generator) / 2000
        return Fp8Matrix(bits.to(device).view(torch.float8_e4m3fn), scales.to(device))
    scales = torch.rand(shape, generator=generator).half()
    if kind == "int8":
        codes = torch.randint(-128, 128, (num_outputs, num_inputs), generator=generator).to(torch.int8)
        return QuantizedMatrix(codes.to(device), (scales / 1000).to(device), None)
    codes = torch.randint(256, (num_outputs, num_inputs // 2), generator=generator).to(torch.uint8)
    offsets = torch.randn(shape, generator=generator).half() / 50
    return QuantizedMatrix(codes.to(device), (scales / 100).to(device), offsets.to(device))
