"""Codes made numbers inside kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _number(bits: tl.tensor, zero: tl.constexpr = 0) -> tl.tensor:
    """An integer of less than 2**23, less `zero`, as float32: it becomes the last bits of 2**23.

    By units of which GPUs have many; of those that convert integers they have a fourth or an eighth as many.
    """
    return (bits | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + zero)


@triton.jit
def low_codes(codes: tl.tensor) -> tl.tensor:
    """Of bytes that are two codes each, the first."""
    return _number(codes.to(tl.int32) & 15)


@triton.jit
def high_codes(codes: tl.tensor) -> tl.tensor:
    """The second."""
    return _number(codes.to(tl.int32) >> 4)


@triton.jit
def int4_sums(words: tl.tensor, x: tl.tensor, BLOCK_G: tl.constexpr) -> tl.tensor:
    """Of each output and group, codes times x. words: (outputs, BLOCK_G, 4) int32, of eight codes; x: (BLOCK_G, 32).

    A code is taken where it stands in its word, and x divided by what that makes of it: by powers of two, exactly.
    """
    even, odd = tl.split(tl.reshape(x, [BLOCK_G, 4, 2, 2, 2]))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x1, x5 = tl.split(x15)
    x2, x6 = tl.split(x26)
    x3, x7 = tl.split(x37)
    sums = _number(words & 0xF) * x0[None, :, :]
    sums += _number(words & 0xF0) * (x1 * 2.0**-4)[None, :, :]
    sums += _number(words & 0xF00) * (x2 * 2.0**-8)[None, :, :]
    sums += _number(words & 0xF000) * (x3 * 2.0**-12)[None, :, :]
    sums += _number(words & 0xF0000) * (x4 * 2.0**-16)[None, :, :]
    rest = words >> 20
    sums += _number(rest & 0xF) * x5[None, :, :]
    sums += _number(rest & 0xF0) * (x6 * 2.0**-4)[None, :, :]
    sums += _number(rest & 0xF00) * (x7 * 2.0**-8)[None, :, :]
    return tl.sum(sums, 2)


@triton.jit
def int8_sums(words: tl.tensor, x: tl.tensor, BLOCK_G: tl.constexpr) -> tl.tensor:
    """The same of signed bytes. words: (outputs, BLOCK_G, 8) int32, of four codes."""
    even, odd = tl.split(tl.reshape(x, [BLOCK_G, 8, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    # 0x80808080, negative as int32 has it: with its highest bit turned round, a byte is its code and 128.
    raised = words ^ -0x7F7F7F80
    sums = _number(raised & 0xFF, 128) * x0[None, :, :]
    sums += _number(raised & 0xFF00, 32768) * (x1 * 2.0**-8)[None, :, :]
    rest = raised >> 16
    sums += _number(rest & 0xFF, 128) * x2[None, :, :]
    sums += _number(rest & 0xFF00, 32768) * (x3 * 2.0**-8)[None, :, :]
    return tl.sum(sums, 2)


@triton.jit
def decoded(codes: tl.tensor, IS_BITS: tl.constexpr) -> tl.tensor:
    """Codes of a byte as float32. IS_BITS: E4M3, none of them NaN, in an integer type, for GPUs that know no other."""
    if codes.dtype == tl.int8:
        return _number((codes.to(tl.int32) & 255) ^ 128, 128)
    if IS_BITS:
        # E4M3 is a float16 whose exponent lacks a bit: 2**8 makes up for the bias, of subnormal numbers too.
        bits = codes.to(tl.int16)
        half = ((bits & 128) << 8) | ((bits & 127) << 7)
        return half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return codes.to(tl.float32)
