"""What a layer does to each row between its products, in one launch each: a program reads its part of a row once.

Numbers are rounded to the activations' type wherever torch's operators would write them down, so that nothing but the order
of sums differs from the reference. No program knows of another row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trierarch.python_backend.executors.torch.kernels.rounding import is_nan, rounded, row_scale


@triton.jit
def normalize(
    normed: tl.tensor,
    total: tl.tensor,
    x: tl.tensor,
    added: tl.tensor,
    weight: tl.tensor,
    x_stride: tl.tensor,
    added_stride: tl.tensor,
    size: tl.tensor,
    eps: tl.tensor,
    HAS_ADDED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """x + added, where something is added, and the RMS norm of it. normed, total: (rows, size). Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    is_column = column < size
    value = tl.load(x + row * x_stride + column, mask=is_column, other=0.0).to(tl.float32)
    if HAS_ADDED:
        value += tl.load(added + row * added_stride + column, mask=is_column, other=0.0).to(tl.float32)
        its_total = value.to(total.dtype.element_ty)
        tl.store(total + row * size + column, its_total, mask=is_column)
        value = its_total.to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(tl.sum(value * value, 0) / size + eps)
    its_weight = tl.load(weight + column, mask=is_column, other=0.0)
    tl.store(normed + row * size + column, (value * scale * its_weight).to(normed.dtype.element_ty), mask=is_column)


@triton.jit
def gate(
    result: tl.tensor,
    gate_up: tl.tensor,
    stride: tl.tensor,
    size: tl.tensor,
    IS_SILU: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """activation(gate) * up. gate_up: (rows, 2 * size); result: (rows, size). Grid: rows, blocks of columns.

    IS_SILU: else it is GELU by its tanh.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = column < size
    its_gate = tl.load(gate_up + row * stride + column, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + size + column, mask=is_column, other=0.0).to(tl.float32)
    # Both are gate * sigmoid(z), since tanh(z / 2) is 2 * sigmoid(z) - 1; by an exponential that cannot overflow.
    z = its_gate
    if not IS_SILU:
        z = 1.5957691216057308 * (its_gate + 0.044715 * its_gate * its_gate * its_gate)  # 2 * sqrt(2 / pi)
    small = tl.exp(-tl.abs(z))
    active = its_gate * tl.where(z < 0, small, 1.0) / (1.0 + small)
    active = active.to(result.dtype.element_ty).to(tl.float32)
    tl.store(result + row * size + column, (active * up).to(result.dtype.element_ty), mask=is_column)


@triton.jit
def quantize(
    codes: tl.tensor,
    scales: tl.tensor,
    x: tl.tensor,
    x_stride: tl.tensor,
    size: tl.tensor,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Rows as codes with a scale each. codes: (rows, size); scales: (rows) float32. Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    is_column = column < size
    value = tl.load(x + row * x_stride + column, mask=is_column, other=0.0).to(tl.float32)
    scale = row_scale(tl.max(tl.abs(value), 0), is_nan(value), MOST)
    its_codes = rounded(value, scale, MOST, codes.dtype.element_ty)
    tl.store(codes + row * size + column, its_codes, mask=is_column)
    tl.store(scales + row, scale)


@triton.jit
def place_heads(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    heads: tl.tensor,
    weight: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    kv_rows: tl.tensor,
    token_stride: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    eps: tl.tensor,
    HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    HAS_NORM: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One head of one token: normalised and rotated where it is a query or a key, and put where it belongs.

    heads: (num_tokens, num_heads + 2 * num_kv_heads, HEAD_DIM): queries, keys, values; queries: (num_tokens, num_heads,
    HEAD_DIM); keys, values: rows of HEAD_DIM, of which kv_rows (num_tokens, num_kv_heads) int64 says whose is which, with
    a scale each where MOST, the largest code, is not 0. weight: of queries and keys, (num_heads + num_kv_heads, HEAD_DIM).
    cos, sin: as Rotation has them, ROTARY_DIM a token; 0 rotates nothing. Grid: num_tokens, heads.
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    is_element = d < HEAD_DIM
    its_head = heads + token * token_stride + head * HEAD_DIM
    x = tl.load(its_head + d, mask=is_element, other=0.0).to(tl.float32)
    if head < num_heads + num_kv_heads:
        if HAS_NORM:
            its_weight = weight + head * HEAD_DIM
            scale = 1.0 / tl.sqrt_rn(tl.sum(x * x, 0) / HEAD_DIM + eps)
            x *= scale * tl.load(its_weight + d, mask=is_element, other=0.0)
            x = x.to(heads.dtype.element_ty).to(tl.float32)
        if ROTARY_DIM > 0:
            is_rotated = d < ROTARY_DIM
            other = tl.where(d < ROTARY_DIM // 2, d + ROTARY_DIM // 2, d - ROTARY_DIM // 2)
            partner = tl.load(its_head + other, mask=is_rotated, other=0.0).to(tl.float32)
            if HAS_NORM:
                partner *= scale * tl.load(its_weight + other, mask=is_rotated, other=0.0)
                partner = partner.to(heads.dtype.element_ty).to(tl.float32)
            its_cos = tl.load(cos + token * ROTARY_DIM + d, mask=is_rotated, other=1.0).to(tl.float32)
            its_sin = tl.load(sin + token * ROTARY_DIM + d, mask=is_rotated, other=0.0).to(tl.float32)
            turned = (x * its_cos).to(heads.dtype.element_ty).to(tl.float32) + partner * its_sin
            x = tl.where(is_rotated, turned.to(heads.dtype.element_ty).to(tl.float32), x)
    if head < num_heads:
        place = (token * num_heads + head) * HEAD_DIM + d
        tl.store(queries + place, x.to(queries.dtype.element_ty), mask=is_element)
    else:
        kv_head = (head - num_heads) % num_kv_heads
        row = tl.load(kv_rows + token * num_kv_heads + kv_head)
        is_key = head < num_heads + num_kv_heads
        if MOST > 0:
            its_scale = row_scale(tl.max(tl.abs(x), 0), is_nan(x), MOST)
            tl.store((key_scales if is_key else value_scales) + row, its_scale)
            codes = rounded(x, its_scale, MOST, keys.dtype.element_ty)
        else:
            codes = x.to(keys.dtype.element_ty)
        tl.store((keys if is_key else values) + row * HEAD_DIM + d, codes, mask=is_element)
