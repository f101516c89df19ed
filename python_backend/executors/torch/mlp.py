"""The gated feed-forward network."""

from __future__ import annotations

import torch

from trierarch.python_backend.executors.torch.adaptable_linear import AdaptableLinear
from trierarch.python_backend.executors.torch.adapted_rows import AdaptedRows
from trierarch.python_backend.executors.torch.layer_backend import Gate


class GatedMlp:
    """down(activation(gate(x)) * up(x)), with gate and up stacked in one matrix."""

    def __init__(self, gate_up: AdaptableLinear, down: AdaptableLinear, gate: Gate) -> None:
        self._gate_up = gate_up
        self._down = down
        self._gate = gate

    def __call__(self, x: torch.Tensor, adapted: AdaptedRows | None = None) -> torch.Tensor:
        """x: (rows, hidden), and so the result."""
        return self._down(self._gate(self._gate_up(x, adapted)), adapted)
