"""Weights: the engine's tensors, mapped from disk after their names, shapes and types are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trierarch.builder.adapter import rounded_to, to_floats
from trierarch.builder.manifest import GROUP_SIZE, WEIGHTS_NAME, DType, EngineManifest
from trierarch.builder.safetensors_file import SafetensorsFile
from trierarch.builder.tensors import Array
from trierarch.python_backend.executors.cpu.abi import Format
from trierarch.python_backend.executors.sampling.token_history import Floats
from trierarch.python_backend.executors.weight_table import check_tensors, unreadable


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
        return self.elements.copy() if self.format is Format.FLOAT32 else to_floats(self.elements)


Weights = Mapping[str, Weight]
"""By the names in `builder/manifest.py`; a quantised matrix goes by the name it has unquantised."""


def load_weights(engine: Path, manifest: EngineManifest) -> Weights:
    """Every weight by the name `builder/manifest.py` gives it, as views of the mapped file.

    Raises:
        EngineError: the file is missing or corrupt, or differs from the manifest in a name, a shape or a type.
    """
    path = engine / WEIGHTS_NAME
    try:
        with SafetensorsFile(path) as file:
            headers, arrays = file.headers, file.map()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    stored = check_tensors(path, manifest, headers)
    return {name: Weight(*(arrays[part] for part in parts)) for name, parts in stored.items()}


def to_bfloat16(number: float) -> float:
    """The nearest bfloat16, of two equally near the even one."""
    return float(to_floats(rounded_to(np.array([number], np.float32), DType.BFLOAT16))[0])
