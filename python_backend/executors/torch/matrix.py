"""Matrix: a linear weight as an engine stores it."""

from __future__ import annotations

import torch

from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.quantized_matrix import QuantizedMatrix

Matrix = torch.Tensor | QuantizedMatrix | Fp8Matrix
"""Its `shape` is (out_features, in_features); experts have one more leading axis."""
