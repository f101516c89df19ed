"""GGUF's blocks of 32 integers and a scale, taken apart into an engine's codes without rounding anything again."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from trierarch.builder.codes import Codes, CodeType, pack_nibbles
from trierarch.builder.manifest import GROUP_SIZE, WeightType

CODE_BITS: Final = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4}
"""Tensor types that an engine can keep -> bits of a code."""
CODE_TYPES: Final = {
    name: CodeType(WeightType.INT8 if bits == 8 else WeightType.INT4) for name, bits in CODE_BITS.items()
}
_HALF: Final = np.dtype("<f2")
_ZERO_CODE: Final = 8
"""Q4_0's code of 0."""


def read_codes(tensor_type: str, data: NDArray[np.uint8]) -> Codes:
    """data: (rows, bytes) of whole blocks of a type in CODE_BITS; each has its scale, its minimum (Q4_1), its codes."""
    num_rows = len(data)
    num_scales = 2 if tensor_type == "Q4_1" else 1
    code_bytes = GROUP_SIZE * CODE_BITS[tensor_type] // 8
    blocks = data.reshape(num_rows, -1, num_scales * _HALF.itemsize + code_bytes)
    halves, codes = np.split(blocks, [num_scales * _HALF.itemsize], axis=-1)
    numbers = torch.from_numpy(np.ascontiguousarray(halves).view(_HALF).astype(np.float16))
    stored = torch.from_numpy(np.array(codes))  # a copy: the file is mapped read-only
    scales = numbers[..., 0].contiguous()
    if tensor_type == "Q8_0":
        return Codes(stored.view(torch.int8).flatten(1), scales, None)
    offsets = numbers[..., 1].contiguous() if tensor_type == "Q4_1" else scales * -_ZERO_CODE
    # A block's low halves are its first sixteen inputs, its high halves the rest.
    nibbles = torch.cat((stored & 15, stored >> 4), -1).flatten(1)
    return Codes(pack_nibbles(nibbles), scales, offsets)
