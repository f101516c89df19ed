"""AdaptableLinear: a linear layer whose rows adapters may change."""

from __future__ import annotations

import torch

from trierarch.python_backend.executors.torch.adapted_rows import AdaptedRows
from trierarch.python_backend.executors.torch.linear import MakeLinear, make_linear
from trierarch.python_backend.executors.torch.matrix import Matrix


class AdaptableLinear:
    """Knows the name by which adapters speak of it."""

    def __init__(
        self, name: str, weight: Matrix, bias: torch.Tensor | None = None, make: MakeLinear = make_linear
    ) -> None:
        """name: as `STACKED` has it, behind the layer's. weight: (out_features, in_features). make: of what is adapted."""
        self._name = name
        self._linear = make(weight, bias)
        self._bias = bias

    def __call__(self, x: torch.Tensor, adapted: AdaptedRows | None = None) -> torch.Tensor:
        """x: (rows, in_features) → (rows, out_features), in x's type."""
        y = self._linear(x)
        return y if adapted is None else adapted.add(self._name, x, y, self._bias)
