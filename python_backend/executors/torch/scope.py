"""Scope: the weights of one part of a model."""

from __future__ import annotations

import torch

from trierarch.builder.manifest import Architecture
from trierarch.python_backend.executors.torch.adaptable_linear import AdaptableLinear
from trierarch.python_backend.executors.torch.layer_backend import LayerBackend, Norm
from trierarch.python_backend.executors.torch.matrix import Matrix
from trierarch.python_backend.executors.torch.rope import RotaryEmbedding
from trierarch.python_backend.executors.torch.weights import Weights


class Scope:
    """The weights whose names begin alike, and who computes with them."""

    def __init__(self, weights: Weights, prefix: str, backend: LayerBackend) -> None:
        self._weights = weights
        self._prefix = prefix
        self.backend = backend

    def matrix(self, name: str) -> Matrix:
        """A weight as it is stored."""
        return self._weights[self._prefix + name]

    def tensor(self, name: str) -> torch.Tensor:
        """A weight that is never quantised."""
        weight = self.matrix(name)
        assert isinstance(weight, torch.Tensor), f"{name} is never quantised"
        return weight

    def linear(self, name: str, known_as: str | None = None) -> AdaptableLinear:
        """A matrix, with its bias where there is one. known_as: what adapters call it, where not `name`."""
        bias = self.tensor(f"{name}.bias") if f"{self._prefix}{name}.bias" in self._weights else None
        full_name = self._prefix + (known_as or name)
        return AdaptableLinear(full_name, self.matrix(f"{name}.weight"), bias, self.backend.linear)

    def norm(self, name: str, architecture: Architecture) -> Norm:
        """An RMS norm with the architecture's epsilon."""
        return self.backend.norm(self.tensor(f"{name}.weight"), architecture.norm_eps)

    def ropes(self, architecture: Architecture) -> tuple[RotaryEmbedding, ...]:
        """All of the architecture's."""
        return tuple(
            RotaryEmbedding(self.tensor(f"rope.{index}.inv_freq"), rope.attention_factor)
            for index, rope in enumerate(architecture.ropes)
        )
