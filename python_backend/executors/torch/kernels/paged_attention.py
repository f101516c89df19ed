"""Paged attention in one kernel: any mix of prompt chunks, single tokens and drafts, over blocks that lie anywhere.

A *tile* is some consecutive queries of one sequence, with all query heads that share a KV head: row m of a tile is query
m // GROUP and head m % GROUP, so that the heads of a group load their keys and values once. A program walks over the keys
that its tile sees, BLOCK_N at a time, with the softmax kept up as it goes (Milakov and Gimelshein, arXiv 1805.02867; Dao
et al., arXiv 2205.14135). Where few programs have long contexts, several share a tile's keys and a second kernel merges
what they found (flash-decoding: Dao et al., 2023).

No slot is loaded that holds no key of the sequence, so what other owners left in a block cannot matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl

from trierarch.builder.manifest import Architecture
from trierarch.python_backend.executors.torch.attention_backend import AttentionShape
from trierarch.python_backend.executors.torch.kv_arrays import LayerKv

SMALL_TILE: Final = 16
"""Rows of a tile: a tensor core multiplies no fewer."""
LARGE_TILE: Final = 64
_OPTIONS: Final = {"num_stages": 2, "enable_fp_fusion": True}
"""Of the compiler. They and the sizes below were chosen so that memory and registers suffice, by no measurement yet."""
_EIGHT_WARPS_FROM: Final = 2**13
"""Elements of a tile: four warps have no registers for as many sums."""
MAX_HEAD_DIM: Final = 256
"""Of larger heads the keys and values of a turn do not fit into shared memory."""


@dataclass(frozen=True, slots=True)
class RaggedQueries:
    """A step's queries and where their keys lie, on the device."""

    sequences: torch.Tensor  # (num_sequences, 4) int32
    """Of each the row of its first query, the number of its queries, the position of the first, and how many rows it has.
    Rows behind its queries become zero."""
    block_tables: torch.Tensor  # (num_sequences, width) int32
    tiles: torch.Tensor  # (num_tiles, 2) int32: a sequence and the first of its queries; sequence -1 is no tile
    group: int
    """Query heads to a KV head, for which the tiles were cut."""
    tile_rows: int
    """A power of two, SMALL_TILE to LARGE_TILE, and no fewer than query heads share a KV head."""
    num_splits: int
    """Programs that share a tile's keys."""


def is_interpreted() -> bool:
    """Whether the kernels run under the interpreter, on a CPU. It was decided when this module was imported."""
    return not isinstance(attend, triton.JITFunction)


def obstacle(architecture: Architecture) -> str | None:
    """Why the kernels cannot run a model's attention; None where they can."""
    if architecture.head_dim > MAX_HEAD_DIM:
        return f"heads of {architecture.head_dim} elements; they take {MAX_HEAD_DIM} at most"
    if architecture.num_heads // architecture.num_kv_heads > LARGE_TILE:
        return f"more than {LARGE_TILE} query heads to a KV head"
    return None


def paged_attention(
    queries: torch.Tensor, kv: LayerKv, batch: RaggedQueries, shape: AttentionShape, window: int | None
) -> torch.Tensor:
    """queries: (num_tokens, num_heads, head_dim) → (num_tokens, num_heads * head_dim)."""
    num_tokens, num_heads, head_dim = queries.shape
    assert num_heads == batch.group * shape.num_kv_heads
    queries = queries if queries.stride(2) == 1 else queries.contiguous()
    keys, values = kv.array
    key_scales, value_scales = (None, None) if kv.scales is None else kv.scales
    num_tiles, num_splits, tile_rows = len(batch.tiles), batch.num_splits, batch.tile_rows
    block_d = max(16, triton.next_power_of_2(head_dim))
    result = queries.new_empty(num_tokens, num_heads * head_dim)
    # Without splits nothing is written there.
    found = torch.empty(
        (num_splits, num_tiles, shape.num_kv_heads, tile_rows, block_d + 2) if num_splits > 1 else (1,),
        dtype=torch.float32,
        device=queries.device,
    )
    sizes = {
        "HEAD_DIM": head_dim,
        "GROUP": batch.group,
        "BLOCK_M": tile_rows,
        "BLOCK_D": block_d,
        "num_warps": 8 if tile_rows * block_d >= _EIGHT_WARPS_FROM else 4,
    }
    attend[(num_tiles, shape.num_kv_heads, num_splits)](
        result,
        found,
        queries,
        keys,
        values,
        key_scales,
        value_scales,
        batch.sequences,
        batch.block_tables,
        batch.tiles,
        shape.scale,
        shape.softcap or 0.0,
        window or 0,
        queries.stride(0),
        queries.stride(1),
        batch.block_tables.stride(0),
        keys.shape[2],
        HAS_SOFTCAP=shape.softcap is not None,
        HAS_WINDOW=window is not None,
        HAS_SCALES=kv.scales is not None,
        IS_SPLIT=num_splits > 1,
        BLOCK_N=keys_per_turn(queries.dtype, block_d),
        **sizes,
        **_OPTIONS,
    )
    if num_splits > 1:
        merge[(num_tiles, shape.num_kv_heads)](
            result, found, batch.sequences, batch.tiles, num_splits, **sizes, **_OPTIONS
        )
    return result


def keys_per_turn(dtype: torch.dtype, block_d: int) -> int:
    """As many as shared memory holds twice over, up to 64. dtype: of the queries."""
    return max(16, min(64, 2**14 // (block_d * dtype.itemsize)))


@triton.jit
def attend(
    result: tl.tensor,
    found: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    key_scales: tl.tensor,
    value_scales: tl.tensor,
    sequences: tl.tensor,
    block_tables: tl.tensor,
    tiles: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    table_stride: tl.tensor,
    block_size: tl.tensor,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IS_SPLIT: tl.constexpr,
) -> None:
    """One tile, one KV head, one share of the keys. Arrays as `paged_attention` has them; without splits the result."""
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_kv_heads = tl.num_programs(1)
    sequence = tl.load(tiles + 2 * tile)
    if sequence < 0:
        return
    first_query = tl.load(tiles + 2 * tile + 1)
    first_row = tl.load(sequences + 4 * sequence)
    num_queries = tl.load(sequences + 4 * sequence + 1)
    start = tl.load(sequences + 4 * sequence + 2)
    num_rows = tl.load(sequences + 4 * sequence + 3)

    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    query = first_query + m // GROUP
    is_row = m < BLOCK_M // GROUP * GROUP
    is_query = is_row & (query < num_queries)
    position = start + query
    head = kv_head * GROUP + m % GROUP
    row = (first_row + query).to(tl.int64)
    is_element = is_query[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(
        queries + row[:, None] * token_stride + head[:, None] * head_stride + d[None, :], mask=is_element, other=0.0
    )

    end = start + tl.minimum(first_query + BLOCK_M // GROUP, num_queries)
    begin = tl.maximum(start + first_query + 1 - window, 0) if HAS_WINDOW else 0
    end = tl.where(first_query < num_queries, end, begin)
    if IS_SPLIT:
        share = tl.cdiv(end - begin, tl.num_programs(2) * BLOCK_N) * BLOCK_N
        begin += split * share
        end = tl.minimum(begin + share, end)

    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(begin, end, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        is_key = n < end
        block = tl.load(block_tables + sequence * table_stride + n // block_size, mask=is_key, other=0).to(tl.int64)
        slot = (block * num_kv_heads + kv_head) * block_size + n % block_size
        place = slot[:, None] * HEAD_DIM + d[None, :]
        is_kv = is_key[:, None] & (d < HEAD_DIM)[None, :]
        k = tl.load(keys + place, mask=is_kv, other=0.0)
        if HAS_SCALES:
            k = k.to(tl.float32)  # by way of which every type of codes becomes every type of queries
        scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee") * scale
        if HAS_SCALES:
            scores *= tl.load(key_scales + slot, mask=is_key, other=0.0)[None, :]
        if HAS_SOFTCAP:
            # tanh by an exponential that cannot overflow.
            small = tl.exp(-2.0 / softcap * tl.abs(scores))
            capped = softcap * (1.0 - small) / (1.0 + small)
            scores = tl.where(scores < 0, -capped, capped)
        is_seen = (n[None, :] <= position[:, None]) & is_key[None, :]
        if HAS_WINDOW:
            is_seen &= n[None, :] > position[:, None] - window
        scores = tl.where(is_seen, scores, float("-inf"))

        higher = tl.maximum(highest, tl.max(scores, 1))
        # A row may have seen nothing yet: minus infinity less itself is no number.
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - anchor[:, None])
        fading = tl.exp(highest - anchor)
        v = tl.load(values + place, mask=is_kv, other=0.0)
        if HAS_SCALES:
            v = v.to(tl.float32) * tl.load(value_scales + slot, mask=is_key, other=0.0)[:, None]
        total = total * fading + tl.sum(weights, 1)
        mixed = mixed * fading[:, None] + tl.dot(weights.to(q.dtype), v.to(q.dtype), input_precision="ieee")
        highest = higher

    if not IS_SPLIT:
        mean = tl.where(is_query[:, None], mixed / tl.where(is_query, total, 1.0)[:, None], 0.0)
        place = (row[:, None] * num_kv_heads * GROUP + head[:, None]) * HEAD_DIM + d[None, :]
        is_stored = (is_row & (query < num_rows))[:, None] & (d < HEAD_DIM)[None, :]
        tl.store(result + place, mean.to(q.dtype), mask=is_stored)
    else:
        part = (split * tl.num_programs(0) + tile) * num_kv_heads + kv_head
        place = (part.to(tl.int64) * BLOCK_M + m) * (BLOCK_D + 2)
        tl.store(found + place[:, None] + d[None, :], mixed)
        tl.store(found + place + BLOCK_D, highest)
        tl.store(found + place + BLOCK_D + 1, total)


@triton.jit
def merge(
    result: tl.tensor,
    found: tl.tensor,
    sequences: tl.tensor,
    tiles: tl.tensor,
    num_splits: tl.tensor,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """What the splits of a tile found, made one. found: (num_splits, tiles, KV heads, BLOCK_M, BLOCK_D + 2)."""
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    num_kv_heads = tl.num_programs(1)
    sequence = tl.load(tiles + 2 * tile)
    if sequence < 0:
        return
    first_query = tl.load(tiles + 2 * tile + 1)
    first_row = tl.load(sequences + 4 * sequence)
    num_queries = tl.load(sequences + 4 * sequence + 1)
    num_rows = tl.load(sequences + 4 * sequence + 3)

    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for split in range(num_splits):
        part = (split * tl.num_programs(0) + tile) * num_kv_heads + kv_head
        place = (part.to(tl.int64) * BLOCK_M + m) * (BLOCK_D + 2)
        its_highest = tl.load(found + place + BLOCK_D)
        higher = tl.maximum(highest, its_highest)
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        fading, its_share = tl.exp(highest - anchor), tl.exp(its_highest - anchor)
        total = total * fading + tl.load(found + place + BLOCK_D + 1) * its_share
        mixed = mixed * fading[:, None] + tl.load(found + place[:, None] + d[None, :]) * its_share[:, None]
        highest = higher

    query = first_query + m // GROUP
    is_row = m < BLOCK_M // GROUP * GROUP
    is_query = is_row & (query < num_queries)
    row, head = (first_row + query).to(tl.int64), kv_head * GROUP + m % GROUP
    mean = tl.where(is_query[:, None], mixed / tl.where(is_query, total, 1.0)[:, None], 0.0)
    place = (row[:, None] * num_kv_heads * GROUP + head[:, None]) * HEAD_DIM + d[None, :]
    is_stored = (is_row & (query < num_rows))[:, None] & (d < HEAD_DIM)[None, :]
    tl.store(result + place, mean.to(result.dtype.element_ty), mask=is_stored)
