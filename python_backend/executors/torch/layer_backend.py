"""LayerBackend: who computes what a layer is made of, attention and adapters aside."""

from __future__ import annotations

from typing import Protocol

import torch

from trierarch.builder.manifest import Activation
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv
from trierarch.python_backend.executors.torch.linear import Linear
from trierarch.python_backend.executors.torch.matrix import Matrix
from trierarch.python_backend.executors.torch.residual import Residual
from trierarch.python_backend.executors.torch.rope import Rotation


class Norm(Protocol):
    """RMS normalisation of the last dimension."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (rows, n), and so the result."""
        ...

    def of_sum(self, residual: Residual) -> tuple[torch.Tensor, torch.Tensor]:
        """What the residual's `total` is, rounded to its type, and that normalised: (num_tokens, hidden) each."""
        ...


class Gate(Protocol):
    """What stands between the two products of a gated feed-forward network."""

    def __call__(self, gate_up: torch.Tensor) -> torch.Tensor:
        """activation(gate) * up. gate_up: (rows, 2 * intermediate), gate before up → (rows, intermediate)."""
        ...


class Heads(Protocol):
    """What stands between the product that makes queries, keys and values, and attention."""

    def __call__(
        self, heads: torch.Tensor, rotation: Rotation | None, kv: LayerKv, kv_rows: torch.Tensor
    ) -> torch.Tensor:
        """Normalise queries and keys where the model does, rotate them, and store keys and values.

        heads: (num_tokens, num_heads + 2 * num_kv_heads, head_dim): queries, keys, values. kv_rows: as LayerKv.write's.
        Returns the queries, (num_tokens, num_heads, head_dim).
        """
        ...


class Experts(Protocol):
    """All networks of a layer that is a mixture of experts."""

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Each row's weighted sum of what its experts make of it, (rows, hidden).

        x: (rows, hidden); chosen: (rows, experts_per_token) int64, no expert twice in a row; weights: likewise, float32.
        """
        ...


class LayerBackend(Protocol):
    """Makes the parts of a model's layers, once, when the model is loaded."""

    @property
    def label(self) -> str:
        """For people."""
        ...

    def linear(self, weight: Matrix, bias: torch.Tensor | None = None) -> Linear:
        """weight: (out_features, in_features)."""
        ...

    def norm(self, weight: torch.Tensor, eps: float) -> Norm:
        """weight: (n) float32."""
        ...

    def gate(self, activation: Activation) -> Gate:
        """Of an activation."""
        ...

    def heads(self, num_heads: int, num_kv_heads: int, qk_norm: torch.Tensor | None, eps: float) -> Heads:
        """qk_norm: (num_heads + num_kv_heads, head_dim) float32, weights by which queries and keys are normalised."""
        ...

    def experts(self, gate_up: Matrix, down: Matrix, activation: Activation) -> Experts:
        """gate_up: (experts, 2 * inner, hidden); down: (experts, hidden, inner)."""
        ...
