"""The gated feed-forward network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch.nn import functional

from trierarch.builder.manifest import Activation
from trierarch.python_backend.executors.torch.adaptable_linear import AdaptableLinear
from trierarch.python_backend.executors.torch.adapted_rows import AdaptedRows


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: Final[dict[Activation, Callable[[torch.Tensor], torch.Tensor]]] = {
    Activation.SILU: functional.silu,
    Activation.GELU_TANH: _gelu_tanh,
}


def gate_of(activation: Activation) -> Callable[[torch.Tensor], torch.Tensor]:
    """gate and up, (rows, 2 * inner) → activation(gate) * up."""
    activate = ACTIVATIONS[activation]

    def gated(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        return activate(gate).mul_(up)

    return gated


class GatedMlp:
    """down(activation(gate(x)) * up(x)), with gate and up stacked in one matrix."""

    def __init__(self, gate_up: AdaptableLinear, down: AdaptableLinear, activation: Activation) -> None:
        self._gate_up = gate_up
        self._down = down
        self._gated = gate_of(activation)

    def __call__(self, x: torch.Tensor, adapted: AdaptedRows | None = None) -> torch.Tensor:
        """x: (rows, hidden), and so the result."""
        return self._down(self._gated(self._gate_up(x, adapted)), adapted)
