"""EagerGate: the gate of a feed-forward network by torch's own operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch.nn import functional

from trierarch.builder.manifest import Activation


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: Final[dict[Activation, Callable[[torch.Tensor], torch.Tensor]]] = {
    Activation.SILU: functional.silu,
    Activation.GELU_TANH: _gelu_tanh,
}


class EagerGate:
    """Implements Gate."""

    def __init__(self, activation: Activation) -> None:
        self._activation = ACTIVATIONS[activation]

    def __call__(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See Gate."""
        gate, up = gate_up.chunk(2, -1)
        return self._activation(gate).mul_(up)
