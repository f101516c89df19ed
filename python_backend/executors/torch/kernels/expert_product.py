"""Products of rows with the matrices of experts that they chose, in one launch.

A *pair* is a row and one of its choices; pairs are numbered row by row. A *tile* is up to BLOCK_M pairs of one expert, which
follow each other in `order`. Who chose what is read on the device, and a launch's grid depends on how many pairs and experts
there are and on nothing else, so a step may be replayed with other choices.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiply(
    y: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    order: tl.tensor,
    tiles: tl.tensor,
    x_stride: tl.tensor,
    expert_stride: tl.tensor,
    weight_stride: tl.tensor,
    num_inputs: tl.tensor,
    num_outputs: tl.tensor,
    PAIRS_PER_ROW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """y: (pairs, num_outputs). x: (pairs / PAIRS_PER_ROW, num_inputs). weight: (experts, num_outputs, num_inputs).

    tiles: (n, 3) int32, an expert, -1 for none, and of its pairs in `order`, (pairs) int64, the first and the end. Grid:
    tiles, blocks of columns.
    """
    tile = tl.program_id(0)
    expert = tl.load(tiles + 3 * tile)
    if expert < 0:
        return
    first_pair = tl.load(tiles + 3 * tile + 1)
    end_pair = tl.load(tiles + 3 * tile + 2)
    its_weight = weight + expert.to(tl.int64) * expert_stride

    m, n = first_pair + tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_pair, is_output = m < end_pair, n < num_outputs
    pair = tl.load(order + m, mask=is_pair, other=0)
    row = pair // PAIRS_PER_ROW
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, num_inputs, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        is_input = k < num_inputs
        its_x = tl.load(x + row[:, None] * x_stride + k[None, :], mask=is_pair[:, None] & is_input[None, :], other=0.0)
        block = tl.load(
            its_weight + n[:, None].to(tl.int64) * weight_stride + k[None, :],
            mask=is_output[:, None] & is_input[None, :],
            other=0.0,
        )
        sums += tl.dot(its_x, tl.trans(block), input_precision="ieee")
    is_element = is_pair[:, None] & is_output[None, :]
    tl.store(y + pair[:, None] * num_outputs + n[None, :], sums.to(y.dtype.element_ty), mask=is_element)
