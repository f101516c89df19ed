"""ScaledLinear: E4M3 times E4M3 on the GPU's own units, which are twice as fast as bfloat16's and read half the bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Final, Protocol

import torch

from trierarch.python_backend.executors.torch.fp8_matrix import Fp8Matrix
from trierarch.python_backend.executors.torch.row_codes import quantize_rows

logger = logging.getLogger(__name__)

_LEAST_CAPABILITY: Final = (8, 9)
"""sm_89 is the first with E4M3 units."""
_MULTIPLE: Final = 16
"""What torch._scaled_mm wants both sides of a matrix to be a multiple of."""


class Product(Protocol):
    """What torch._scaled_mm does."""

    def __call__(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        /,
        *,
        scale_a: torch.Tensor,
        scale_b: torch.Tensor,
        bias: torch.Tensor | None,
        out_dtype: torch.dtype,
        use_fast_accum: bool,
    ) -> torch.Tensor:
        """(scale_a * a) @ (scale_b * b) + bias.

        a: (m, k) E4M3, by rows; b: (k, n) E4M3, by columns; scale_a: (m, 1); scale_b: (1, n) → (m, n) of `out_dtype`.
        """
        ...


Quantize = Callable[[torch.Tensor, torch.dtype], tuple[torch.Tensor, torch.Tensor]]
"""What `quantize_rows` does."""


class ScaledLinear:
    """Each row of x is rounded to E4M3 as well, with a scale of its own; the product comes in bfloat16."""

    def __init__(
        self,
        weight: Fp8Matrix,
        bias: torch.Tensor | None = None,
        product: Product = torch._scaled_mm,
        quantize: Quantize = quantize_rows,
    ) -> None:
        """weight: (out_features, in_features)."""
        self._codes = weight.codes.t()
        self._scales = weight.scales[None]
        self._bias = None if bias is None else bias.bfloat16()
        self._product = product
        self._quantize = quantize

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x @ weight.T + bias."""
        codes, scales = self._quantize(x, torch.float8_e4m3fn)
        return self._product(
            codes,
            self._codes,
            scale_a=scales[:, None],
            scale_b=self._scales,
            bias=self._bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        ).to(x.dtype)


def can_scale(weight: Fp8Matrix) -> bool:
    """Whether a ScaledLinear of `weight`, which has a scale a row, runs where it lies."""
    device = weight.codes.device
    return (
        weight.block is None
        and device.type == "cuda"
        and not any(size % _MULTIPLE for size in weight.shape)
        and _has_product(device)
    )


@cache
def _has_product(device: torch.device) -> bool:
    """Whether the device multiplies E4M3, tried once; a GPU that does not is named in the log."""
    capability = torch.cuda.get_device_capability(device)
    reason = f"sm_{capability[0]}{capability[1]} has no units for it"
    if capability >= _LEAST_CAPABILITY:
        square = torch.zeros(_MULTIPLE, _MULTIPLE, device=device)
        weight = Fp8Matrix(square.to(torch.float8_e4m3fn), torch.ones(_MULTIPLE, device=device))
        try:
            ScaledLinear(weight)(square.bfloat16())
        except (RuntimeError, NotImplementedError, TypeError) as error:
            reason = str(error).partition("\n")[0]
        else:
            return True
    logger.warning(
        "%s multiplies no fp8 (%s): its weights are decoded instead, which is many times slower without kernels of "
        "ours; rebuild without --quantization, or serve on sm_89 or later",
        device,
        reason,
    )
    return False
