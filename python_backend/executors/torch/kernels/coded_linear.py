"""Linear layers over codes that are decoded as they are multiplied, by kernels of ours."""

from __future__ import annotations

import torch
from torch.nn import functional

from trierarch.python_backend.executors.torch.kernels.coded_matrix import FEW_ROWS, MANY_ROWS, CodedMatrix
from trierarch.python_backend.executors.torch.linear import Linear


class CodedLinear:
    """Activations are not rounded. What takes QuantizedLinear's place on a GPU."""

    def __init__(self, weight: CodedMatrix, bias: torch.Tensor | None = None) -> None:
        """weight: (out_features, in_features)."""
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x @ weight.T + bias."""
        if len(x) > MANY_ROWS or not len(x):
            return functional.linear(x, self._weight.elements(x.dtype), self._bias)
        x = _rows(x)
        if len(x) > FEW_ROWS:
            return self._weight.times_tile(x, self._bias)
        return self._weight.times_rows(x, self._bias)


class FewRowsLinear:
    """E4M3 times E4M3 where few rows are waited for: rounded and multiplied in one launch, not filled up to a tile's.

    Both ways multiply the same numbers; what differs is the order of sums.
    """

    def __init__(self, weight: CodedMatrix, bias: torch.Tensor | None, many: Linear) -> None:
        """weight: of E4M3, (out_features, in_features). many: a ScaledLinear of the same, for more rows."""
        self._weight = weight
        self._bias = bias
        self._many = many

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x @ weight.T + bias."""
        if 0 < len(x) <= FEW_ROWS:
            return self._weight.times_rows(_rows(x), self._bias, rounds_x=True)
        return self._many(x)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Whose elements lie one after the other."""
    return x if x.stride(1) == 1 else x.contiguous()
