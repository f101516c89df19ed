"""Weights: the engine's tensors, mapped from disk after their names, shapes and types are checked."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trierarch.builder.manifest import GROUP_SIZE, WEIGHTS_NAME, EngineManifest
from trierarch.python_backend.executors.cpu.abi import Format
from trierarch.python_backend.executors.sampling.token_history import Floats
from trierarch.python_backend.executors.weight_table import Header, check_tensors, unreadable

Array = npt.NDArray[Any]
_DTYPES: Final[dict[str, npt.DTypeLike]] = {
    "F32": np.float32,
    "BF16": np.uint16,  # its bits
    "F16": np.float16,
    "I8": np.int8,
    "U8": np.uint8,
}
_LENGTH_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight as the engine's file has it; `builder/manifest.py` lays out what is quantised."""

    elements: Array  # or codes; bfloat16 as its bits
    scales: Array | None = None
    offsets: Array | None = None

    @property
    def format(self) -> Format:
        """Of its elements."""
        if self.scales is not None:
            return Format.INT8 if self.offsets is None else Format.INT4
        return Format.FLOAT32 if self.elements.dtype == np.float32 else Format.BFLOAT16

    @property
    def shape(self) -> tuple[int, ...]:
        """As it would be unquantised."""
        if self.scales is None:
            return self.elements.shape
        return *self.scales.shape[:-1], self.scales.shape[-1] * GROUP_SIZE

    @property
    def arrays(self) -> list[Array]:
        """All that it is made of."""
        return [array for array in (self.elements, self.scales, self.offsets) if array is not None]

    def floats(self) -> Floats:
        """A copy of elements that are not quantised."""
        assert self.scales is None, "norms, biases and frequencies are never quantised"
        return self.elements.copy() if self.format is Format.FLOAT32 else from_bfloat16(self.elements)


Weights = Mapping[str, Weight]
"""By the names in `builder/manifest.py`; a quantised matrix goes by the name it has unquantised."""


def load_weights(engine: Path, manifest: EngineManifest) -> Weights:
    """Every weight by the name `builder/manifest.py` gives it, as views of the mapped file.

    Raises:
        EngineError: the file is missing or corrupt, or differs from the manifest in a name, a shape or a type.
    """
    path = engine / WEIGHTS_NAME
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        places = _places(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(path, error) from error
    stored = check_tensors(path, manifest, {name: header for name, (header, _) in places.items()})

    def view(name: str) -> Array:
        (dtype, shape), offset = places[name]
        return np.frombuffer(content, _DTYPES[dtype], math.prod(shape), offset).reshape(shape)

    return {name: Weight(*map(view, names)) for name, names in stored.items()}


def to_bfloat16(number: float) -> float:
    """The nearest bfloat16, of two equally near the even one."""
    bits = int(np.float32(number).view(np.uint32))
    return float(from_bfloat16(np.array([bits + 0x7FFF + (bits >> 16 & 1) >> 16], dtype=np.uint16))[0])


def from_bfloat16(bits: Array) -> Floats:
    """Bits of bfloat16 as the numbers they are."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _places(content: mmap.mmap) -> dict[str, tuple[Header, int]]:
    """Name -> (type, shape) and first byte of every tensor in a safetensors file.

    Format: 8 bytes of little-endian header length, a JSON header, the tensors' bytes.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none, or was cut short.
    """
    begin = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    if begin > len(content):
        raise ValueError("its header is cut short")
    entries = json.loads(content[_LENGTH_BYTES:begin])
    entries.pop("__metadata__", None)
    places = {}
    for name, entry in entries.items():
        dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        num_bytes = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        if not 0 <= first <= last == first + num_bytes <= len(content) - begin:
            raise ValueError(f"{name} is not where its header says")
        places[name] = ((dtype, shape), begin + first)
    return places
