"""Rounding rows to codes inside kernels, as `row_codes.quantize_rows` does outside."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_nan(values: tl.tensor) -> tl.tensor:
    """Whether any of a vector is not a number, which a maximum does not tell."""
    return tl.max((values != values).to(tl.int32), 0) > 0  # noqa: PLR0124 - as nothing but NaN does


@triton.jit
def row_scale(largest: tl.tensor, has_nan: tl.tensor, most: tl.constexpr) -> tl.tensor:
    """Of a row whose largest magnitude is to become the code `most`; not finite where the row is not."""
    return tl.where(has_nan, float("nan"), tl.div_rn(largest, most))


@triton.jit
def rounded(values: tl.tensor, scale: tl.tensor, most: tl.constexpr, code_type: tl.constexpr) -> tl.tensor:
    """float32 values of a row as codes; all 0 where the scale is 0 or not finite."""
    is_sound = (scale > 0) & (scale < float("inf"))
    codes = tl.where(is_sound, tl.div_rn(values, tl.where(is_sound, scale, 1.0)), 0.0)
    if code_type == tl.int8:
        # Adding and taking away 1.5 * 2**23 rounds half to even.
        codes = (codes + 12582912.0) - 12582912.0
    return tl.minimum(tl.maximum(codes, -most), most).to(code_type)
