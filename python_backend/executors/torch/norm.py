"""RMS normalisation."""

from __future__ import annotations

import torch
from torch.nn import functional

from trierarch.python_backend.executors.torch.residual import Residual


class RmsNorm:
    """x / sqrt(mean(x²) + eps) * weight, computed in float32 and returned in x's type (Zhang and Sennrich, 2019).

    Implements Norm.
    """

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        """weight: float32, (..., n), broadcast against x: (..., n)."""
        self._weight = weight
        self._eps = eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        return functional.rms_norm(x.float(), x.shape[-1:], eps=self._eps).mul_(self._weight).to(x.dtype)

    def of_sum(self, residual: Residual) -> tuple[torch.Tensor, torch.Tensor]:
        """See Norm.of_sum."""
        total = residual.total()
        return total, self(total)
