"""Grouped LoRA: one launch serves rows of many adapters of many ranks (after Punica, arXiv 2310.18547, and S-LoRA,
arXiv 2311.03285).

A *tile* is up to BLOCK_M rows of one adapter, wherever they lie in the step; rows of the base model are in no tile. What
a tile multiplies by is found in the slot table, by addresses (slot_table.py): adapters lie where they were loaded, at
their own ranks, and nothing is padded or copied. A launch's grid depends on how many tiles there are and on the engine
alone, so a step may be replayed with other adapters once the table and the tiles are written.

`shrink` computes h = a x for every piece of a stacked matrix, its inputs shared out over SPLITS programs; `expand` sums
the shares, rounds h as the reference does, and adds b h to the piece's columns; `replace` is for a matrix trained whole,
`embed` for embeddings.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["entry"])
def shrink(
    h: tl.tensor,
    x: tl.tensor,
    tiles: tl.tensor,
    table: tl.tensor,
    entry: tl.tensor,
    num_entries: tl.tensor,
    x_stride: tl.tensor,
    num_inputs: tl.tensor,
    MAX_RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """h: (tiles, pieces, SPLITS, BLOCK_M, MAX_RANK) float32. Grid: tiles, pieces * blocks of MAX_RANK, SPLITS."""
    tile, split = tl.program_id(0), tl.program_id(2)
    piece, first_rank = tl.program_id(1) // (MAX_RANK // BLOCK_R), tl.program_id(1) % (MAX_RANK // BLOCK_R) * BLOCK_R
    num_pieces = tl.num_programs(1) // (MAX_RANK // BLOCK_R)
    slot = tl.load(tiles + tile * (BLOCK_M + 1))
    place = table + (slot * num_entries + entry + piece) * 4
    rank = tl.load(place + 3).to(tl.int32)
    if first_rank >= rank:
        return
    # Each is a tensor of its own, and no allocator of torch's aligns less.
    a = tl.multiple_of(tl.load(place).to(tl.pointer_type(x.dtype.element_ty)), 16)

    m, r = tl.arange(0, BLOCK_M), first_rank + tl.arange(0, BLOCK_R)
    row = tl.load(tiles + tile * (BLOCK_M + 1) + 1 + m).to(tl.int64)
    share = tl.cdiv(num_inputs, SPLITS * BLOCK_K) * BLOCK_K
    begin = split * share
    end = tl.minimum(begin + share, num_inputs)
    sums = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for first in range(begin, end, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        its_x = tl.load(
            x + row[:, None] * x_stride + k[None, :], mask=(row >= 0)[:, None] & (k < end)[None, :], other=0.0
        )
        its_a = tl.load(
            a + r[:, None] * num_inputs + k[None, :], mask=(r < rank)[:, None] & (k < end)[None, :], other=0.0
        )
        sums += tl.dot(its_x, tl.trans(its_a), input_precision="ieee")
    part = ((tile * num_pieces + piece) * SPLITS + split).to(tl.int64)
    tl.store(h + (part * BLOCK_M + m)[:, None] * MAX_RANK + r[None, :], sums)


@triton.jit(do_not_specialize=["entry"])
def expand(
    y: tl.tensor,
    h: tl.tensor,
    bias: tl.tensor,
    tiles: tl.tensor,
    table: tl.tensor,
    bounds: tl.tensor,
    entry: tl.tensor,
    num_entries: tl.tensor,
    y_stride: tl.tensor,
    HAS_BIAS: tl.constexpr,
    MAX_RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """y: (rows, out), changed. bounds: (pieces + 1) int32, columns of pieces. Grid: tiles, pieces, blocks of the widest."""
    tile, piece = tl.program_id(0), tl.program_id(1)
    num_pieces = tl.num_programs(1)
    slot = tl.load(tiles + tile * (BLOCK_M + 1))
    place = table + (slot * num_entries + entry + piece) * 4
    rank = tl.load(place + 3).to(tl.int32)
    piece_begin, piece_end = tl.load(bounds + piece), tl.load(bounds + piece + 1)
    begin = piece_begin + tl.program_id(2) * BLOCK_N
    if (rank == 0) | (begin >= piece_end):
        return
    b = tl.multiple_of(tl.load(place + 1).to(tl.pointer_type(y.dtype.element_ty)), 16)
    gain_address = tl.load(place + 2)

    m, n = tl.arange(0, BLOCK_M), begin + tl.arange(0, BLOCK_N)
    row = tl.load(tiles + tile * (BLOCK_M + 1) + 1 + m).to(tl.int64)
    output, is_output = n - piece_begin, n < piece_end
    added = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, rank, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        is_rank = r < rank
        its_h = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
        for split in range(SPLITS):
            part = ((tile * num_pieces + piece) * SPLITS + split).to(tl.int64)
            shares = h + (part * BLOCK_M + m)[:, None] * MAX_RANK + r[None, :]
            its_h += tl.load(shares, mask=is_rank[None, :], other=0.0)
        its_b = tl.load(
            b + output[:, None].to(tl.int64) * rank + r[None, :], mask=is_output[:, None] & is_rank[None, :], other=0.0
        )
        added += tl.dot(its_h.to(its_b.dtype), tl.trans(its_b), input_precision="ieee")

    is_element = (row >= 0)[:, None] & is_output[None, :]
    base = tl.load(y + row[:, None] * y_stride + n[None, :], mask=is_element, other=0.0).to(tl.float32)
    if gain_address != 0:
        gain = tl.load(gain_address.to(tl.pointer_type(tl.float32)) + output, mask=is_output, other=1.0)
        if HAS_BIAS:
            shift = tl.load(bias + n, mask=is_output, other=0.0).to(tl.float32)
            base = (base - shift[None, :]) * gain[None, :] + shift[None, :]
        else:
            base = base * gain[None, :]
    tl.store(y + row[:, None] * y_stride + n[None, :], (base + added).to(y.dtype.element_ty), mask=is_element)


@triton.jit
def replace(
    y: tl.tensor,
    x: tl.tensor,
    bias: tl.tensor,
    tiles: tl.tensor,
    table: tl.tensor,
    entry: tl.tensor,
    num_entries: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    num_inputs: tl.tensor,
    num_outputs: tl.tensor,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Rows of y, (rows, out), by the adapter's own matrix in place of the model's. Grid: tiles, blocks of columns."""
    tile = tl.program_id(0)
    slot = tl.load(tiles + tile * (BLOCK_M + 1))
    address = tl.load(table + (slot * num_entries + entry) * 4)
    if address == 0:
        return
    weight = tl.multiple_of(address.to(tl.pointer_type(x.dtype.element_ty)), 16)

    m, n = tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.load(tiles + tile * (BLOCK_M + 1) + 1 + m).to(tl.int64)
    is_output = n < num_outputs
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, num_inputs, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        its_x = tl.load(
            x + row[:, None] * x_stride + k[None, :], mask=(row >= 0)[:, None] & (k < num_inputs)[None, :], other=0.0
        )
        its_weight = tl.load(
            weight + n[:, None].to(tl.int64) * num_inputs + k[None, :],
            mask=is_output[:, None] & (k < num_inputs)[None, :],
            other=0.0,
        )
        sums += tl.dot(its_x, tl.trans(its_weight), input_precision="ieee")
    if HAS_BIAS:
        sums += tl.load(bias + n, mask=is_output, other=0.0).to(tl.float32)[None, :]
    is_element = (row >= 0)[:, None] & is_output[None, :]
    tl.store(y + row[:, None] * y_stride + n[None, :], sums.to(y.dtype.element_ty), mask=is_element)


@triton.jit
def embed(
    x: tl.tensor,
    token_ids: tl.tensor,
    tiles: tl.tensor,
    table: tl.tensor,
    entry: tl.tensor,
    whole_entry: tl.tensor,
    num_entries: tl.tensor,
    x_stride: tl.tensor,
    hidden_size: tl.tensor,
    scale: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Rows of x, (rows, hidden), by adapted embeddings, `scale` in them. Grid: tiles, blocks of columns."""
    tile = tl.program_id(0)
    slot = tl.load(tiles + tile * (BLOCK_M + 1))
    place = table + (slot * num_entries + entry) * 4
    rank = tl.load(place + 3).to(tl.int32)
    whole_address = tl.load(table + (slot * num_entries + whole_entry) * 4)
    if (rank == 0) & (whole_address == 0):
        return

    m, n = tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.load(tiles + tile * (BLOCK_M + 1) + 1 + m).to(tl.int64)
    token = tl.load(token_ids + row, mask=row >= 0, other=0)
    is_element = (row >= 0)[:, None] & (n < hidden_size)[None, :]
    elements = tl.load(x + row[:, None] * x_stride + n[None, :], mask=is_element, other=0.0).to(tl.float32)
    if whole_address != 0:
        whole = whole_address.to(tl.pointer_type(x.dtype.element_ty))
        elements = tl.load(whole + token[:, None] * hidden_size + n[None, :], mask=is_element, other=0.0)
        elements = elements.to(tl.float32) * scale
    a = tl.load(place).to(tl.pointer_type(x.dtype.element_ty))
    b = tl.load(place + 1).to(tl.pointer_type(x.dtype.element_ty))
    for first in range(0, rank, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        its_a = tl.load(
            a + token[:, None] * rank + r[None, :], mask=(row >= 0)[:, None] & (r < rank)[None, :], other=0.0
        )
        its_b = tl.load(
            b + n[:, None] * rank + r[None, :], mask=(n < hidden_size)[:, None] & (r < rank)[None, :], other=0.0
        )
        elements += tl.dot(its_a, tl.trans(its_b), input_precision="ieee") * scale
    tl.store(x + row[:, None] * x_stride + n[None, :], elements.to(x.dtype.element_ty), mask=is_element)
