"""Products with weights that are codes: integers of 8 or 4 bits, or E4M3, decoded in registers as they are read.

Two forms. `multiply_rows` is for few rows, which wait for memory: each row is programs of its own, which share out outputs
and, where these keep few processors busy, inputs. It sums a group's products with the codes themselves and multiplies the
sum by the group's scale: no weight is rounded. `multiply_tiles` is for more: a tile of rows shares what is decoded, in the
activations' type, for tensor cores. `dequantize` writes the elements down, for a product of torch's own.

No program adds to what another wrote: shares of a sum are stored apart, and `add_shares` adds them in their order. What a row
gets depends on the matrix, on the form and on the row, and on no other row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trierarch.python_backend.executors.torch.kernels.decoding import (
    decoded,
    high_codes,
    int4_sums,
    int8_sums,
    low_codes,
)
from trierarch.python_backend.executors.torch.kernels.rounding import rounded, row_scale

COLUMNS: tl.constexpr = tl.constexpr(32)
"""Elements of a *group*, which are decoded together: a scale of integers is of so many, one of E4M3 of a multiple."""


@triton.jit
def _scale_of_row(x: tl.tensor, size: tl.tensor, most: tl.constexpr, BLOCK: tl.constexpr) -> tl.tensor:
    """Of all of a row, whatever part of it a program multiplies."""
    largest, has_nan = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.int32)
    for first in range(0, size, BLOCK):
        column = first + tl.arange(0, BLOCK)
        value = tl.load(x + column, mask=column < size, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(value))
        has_nan |= (value != value).to(tl.int32)  # noqa: PLR0124 - as nothing but NaN does
    return row_scale(tl.max(largest, 0), tl.max(has_nan, 0) > 0, most)


@triton.jit
def multiply_rows(
    y: tl.tensor,
    shares: tl.tensor,
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    offsets: tl.tensor,
    bias: tl.tensor,
    x_stride: tl.tensor,
    row_items: tl.tensor,
    num_outputs: tl.tensor,
    scale_stride: tl.tensor,
    scale_rows: tl.tensor,
    scale_columns: tl.tensor,
    IS_INT4: tl.constexpr,
    IS_BITS: tl.constexpr,
    MOST_X: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
) -> None:
    """Some outputs of one row. x: (rows, in); y: (rows, out); shares: (rows, SPLITS, out) float32, where SPLITS is not 1.

    codes: (out, row_items), int32 that hold integers, or E4M3's bytes. A scale is of scale_rows by scale_columns elements.
    MOST_X: where it is not 0, the row is rounded to E4M3 as it is read, its largest to this code. Grid: rows, blocks of
    outputs, SPLITS.
    """
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_output = n < num_outputs
    # Of what is loaded at once: words of integers, bytes of E4M3.
    PER_ITEM: tl.constexpr = 8 if IS_INT4 else 4 if codes.dtype.element_ty == tl.int32 else 1
    GROUP_ITEMS: tl.constexpr = COLUMNS // PER_ITEM
    its_codes = codes + n.to(tl.int64) * row_items
    its_scales = (n // scale_rows) * scale_stride
    its_x = x + row * x_stride

    num_groups = tl.cdiv(row_items, GROUP_ITEMS)
    share = tl.cdiv(num_groups, SPLITS * BLOCK_G) * BLOCK_G
    begin = split * share
    end = tl.minimum(begin + share, num_groups)
    if MOST_X > 0:
        x_scale = _scale_of_row(its_x, row_items * PER_ITEM, MOST_X, BLOCK_G * COLUMNS)
    sums = tl.zeros([BLOCK_N, BLOCK_G], tl.float32)
    for first in range(begin, end, BLOCK_G):
        group = first + tl.arange(0, BLOCK_G)
        item = group[:, None] * GROUP_ITEMS + tl.arange(0, GROUP_ITEMS)[None, :]
        is_item = (item < row_items) & (group < end)[:, None]
        is_code = is_output[:, None, None] & is_item[None, :, :]
        code = tl.load(its_codes[:, None, None] + item[None, :, :], mask=is_code, other=0.0)
        is_scale = is_output[:, None] & (group < end)[None, :]
        place = its_scales[:, None] + (group * COLUMNS // scale_columns)[None, :]
        scale = tl.load(scales + place, mask=is_scale, other=0.0).to(tl.float32)
        column = group[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        is_column = (column < row_items * PER_ITEM) & (group < end)[:, None]
        some_x = tl.load(its_x + column, mask=is_column, other=0.0).to(tl.float32)
        if MOST_X > 0:
            some_x = rounded(some_x, x_scale, MOST_X, tl.float8e4nv).to(tl.float32)
        if IS_INT4:
            offset = tl.load(offsets + place, mask=is_scale, other=0.0).to(tl.float32)
            sums += int4_sums(code, some_x, BLOCK_G) * scale + tl.sum(some_x, 1)[None, :] * offset
        elif codes.dtype.element_ty == tl.int32:
            sums += int8_sums(code, some_x, BLOCK_G) * scale
        else:
            sums += tl.sum(decoded(code, IS_BITS) * some_x[None, :, :], 2) * scale

    result = tl.sum(sums, 1)
    if MOST_X > 0:
        result *= x_scale
    if SPLITS == 1:
        if HAS_BIAS:
            result += tl.load(bias + n, mask=is_output, other=0.0).to(tl.float32)
        tl.store(y + row * num_outputs + n, result.to(y.dtype.element_ty), mask=is_output)
    else:
        tl.store(shares + (row * SPLITS + split) * num_outputs + n, result, mask=is_output)


@triton.jit(do_not_specialize=["num_rows"])
def multiply_tiles(
    y: tl.tensor,
    shares: tl.tensor,
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    offsets: tl.tensor,
    bias: tl.tensor,
    x_stride: tl.tensor,
    num_rows: tl.tensor,
    row_bytes: tl.tensor,
    num_outputs: tl.tensor,
    scale_stride: tl.tensor,
    scale_rows: tl.tensor,
    scale_columns: tl.tensor,
    IS_INT4: tl.constexpr,
    IS_BITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
) -> None:
    """Some outputs of BLOCK_M rows; arrays as `multiply_rows` has them, but codes as bytes: (out, row_bytes).

    Grid: tiles of rows, blocks of outputs, SPLITS.
    """
    split = tl.program_id(2)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_output = m < num_rows, n < num_outputs
    PER_BYTE: tl.constexpr = 2 if IS_INT4 else 1
    GROUP_BYTES: tl.constexpr = COLUMNS // PER_BYTE
    TURN_BYTES: tl.constexpr = BLOCK_G * GROUP_BYTES
    its_x = x + m[:, None].to(tl.int64) * x_stride
    its_codes = codes + n.to(tl.int64) * row_bytes
    its_scales = (n // scale_rows) * scale_stride

    num_groups = tl.cdiv(row_bytes, GROUP_BYTES)
    share = tl.cdiv(num_groups, SPLITS * BLOCK_G) * BLOCK_G
    begin = split * share
    end = tl.minimum(begin + share, num_groups)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(begin, end, BLOCK_G):
        group = first + tl.arange(0, BLOCK_G)
        byte = group[:, None] * GROUP_BYTES + tl.arange(0, GROUP_BYTES)[None, :]
        is_byte = (byte < row_bytes) & (group < end)[:, None]
        is_code = is_output[:, None, None] & is_byte[None, :, :]
        code = tl.load(its_codes[:, None, None] + byte[None, :, :], mask=is_code, other=0.0)
        is_scale = is_output[:, None] & (group < end)[None, :]
        place = its_scales[:, None] + (group * COLUMNS // scale_columns)[None, :]
        scale = tl.load(scales + place, mask=is_scale, other=0.0).to(tl.float32)[:, :, None]
        column = first * COLUMNS + tl.arange(0, BLOCK_G * COLUMNS)
        is_x = is_row[:, None] & (column < tl.minimum(end * COLUMNS, row_bytes * PER_BYTE))[None, :]
        some_x = tl.load(its_x + column[None, :], mask=is_x, other=0.0)
        if IS_INT4:
            offset = tl.load(offsets + place, mask=is_scale, other=0.0).to(tl.float32)[:, :, None]
            low = (low_codes(code) * scale + offset).to(x.dtype.element_ty)
            high = (high_codes(code) * scale + offset).to(x.dtype.element_ty)
            even_x, odd_x = tl.split(tl.reshape(some_x, [BLOCK_M, TURN_BYTES, 2]))
            sums += tl.dot(even_x, tl.trans(tl.reshape(low, [BLOCK_N, TURN_BYTES])), input_precision="ieee")
            sums += tl.dot(odd_x, tl.trans(tl.reshape(high, [BLOCK_N, TURN_BYTES])), input_precision="ieee")
        else:
            weight = tl.reshape((decoded(code, IS_BITS) * scale).to(x.dtype.element_ty), [BLOCK_N, TURN_BYTES])
            sums += tl.dot(some_x, tl.trans(weight), input_precision="ieee")

    is_element = is_row[:, None] & is_output[None, :]
    if SPLITS == 1:
        if HAS_BIAS:
            sums += tl.load(bias + n, mask=is_output, other=0.0).to(tl.float32)[None, :]
        place = m[:, None].to(tl.int64) * num_outputs + n[None, :]
        tl.store(y + place, sums.to(y.dtype.element_ty), mask=is_element)
    else:
        place = (m[:, None].to(tl.int64) * SPLITS + split) * num_outputs + n[None, :]
        tl.store(shares + place, sums, mask=is_element)


@triton.jit
def add_shares(
    y: tl.tensor,
    shares: tl.tensor,
    bias: tl.tensor,
    num_outputs: tl.tensor,
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """What the splits of a product found, made one, in their order. Grid: rows, blocks of outputs."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_output = n < num_outputs
    result = tl.zeros([BLOCK_N], tl.float32)
    for split in tl.static_range(SPLITS):
        result += tl.load(shares + (row * SPLITS + split) * num_outputs + n, mask=is_output, other=0.0)
    if HAS_BIAS:
        result += tl.load(bias + n, mask=is_output, other=0.0).to(tl.float32)
    tl.store(y + row * num_outputs + n, result.to(y.dtype.element_ty), mask=is_output)


@triton.jit
def dequantize(
    elements: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    offsets: tl.tensor,
    row_bytes: tl.tensor,
    scale_stride: tl.tensor,
    scale_rows: tl.tensor,
    scale_columns: tl.tensor,
    IS_INT4: tl.constexpr,
    IS_BITS: tl.constexpr,
    BLOCK_B: tl.constexpr,
) -> None:
    """elements: (out, in), worked out in float32. Grid: rows of the matrix, blocks of their bytes."""
    n = tl.program_id(0)
    PER_BYTE: tl.constexpr = 2 if IS_INT4 else 1
    first = tl.program_id(1) * BLOCK_B
    byte = first + tl.arange(0, BLOCK_B)
    is_byte = byte < row_bytes
    code = tl.load(codes + n.to(tl.int64) * row_bytes + byte, mask=is_byte, other=0.0)
    place = (n // scale_rows) * scale_stride + byte * PER_BYTE // scale_columns
    scale = tl.load(scales + place, mask=is_byte, other=0.0).to(tl.float32)
    its_elements = elements + n.to(tl.int64) * row_bytes * PER_BYTE
    if IS_INT4:
        offset = tl.load(offsets + place, mask=is_byte, other=0.0).to(tl.float32)
        both = tl.interleave(low_codes(code) * scale + offset, high_codes(code) * scale + offset)
        column = first * 2 + tl.arange(0, BLOCK_B * 2)
        tl.store(its_elements + column, both.to(elements.dtype.element_ty), mask=column < row_bytes * 2)
    else:
        tl.store(its_elements + byte, (decoded(code, IS_BITS) * scale).to(elements.dtype.element_ty), mask=is_byte)
