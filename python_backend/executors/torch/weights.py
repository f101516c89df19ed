"""Weights: the engine's tensors, mapped from disk after their names, shapes and types are checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors
import torch

from trierarch.builder.manifest import WEIGHTS_NAME, DType, EngineManifest
from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.matrix import Matrix
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix
from trierarch.python_backend.executors.weight_table import check_tensors, unreadable

Weights = Mapping[str, Matrix]
"""By the names in `builder/manifest.py`; a quantised matrix goes by the name it has unquantised."""

TORCH_DTYPES: Final = {
    DType.FLOAT32: torch.float32,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT16: torch.float16,
}


def load_weights(engine: Path, manifest: EngineManifest, device: torch.device) -> Weights:
    """Every weight by the name `builder/manifest.py` gives it; on the CPU they are views of the mapped file.

    Raises:
        EngineError: the file is missing or corrupt, or differs from the manifest in a name, a shape or a type.
    """
    path = engine / WEIGHTS_NAME
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            found = {name: (header.get_dtype(), tuple(header.get_shape())) for name, header in headers.items()}
            stored = check_tensors(path, manifest, found)
            block = None if manifest.quantization is None else manifest.quantization.fp8_block
            return {name: _read(file, names, block) for name, names in stored.items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise unreadable(path, error) from error


def _read(file: Any, names: list[str], fp8_block: tuple[int, int] | None) -> Matrix:
    tensors = [file.get_tensor(name) for name in names]
    if len(tensors) == 1:
        weight: torch.Tensor = tensors[0]
        return weight
    codes, scales, *offsets = tensors
    if codes.dtype is torch.float8_e4m3fn:
        return Fp8Matrix(codes, scales, fp8_block if codes.dim() == scales.dim() else None)
    return QuantizedMatrix(codes, scales, offsets[0] if offsets else None)
