"""Weight: one tensor of an engine, and what it is made of; nothing is read before it is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Final

import torch

from trierarch.builder.checkpoint import Checkpoint
from trierarch.builder.codes import Block, Codes, CodeType, num_blocks
from trierarch.builder.manifest import GROUP_SIZE, DType, WeightType
from trierarch.builder.quantize import quantize
from trierarch.builder.quantize_fp8 import quantize_fp8

TORCH_DTYPES: Final = {
    DType.FLOAT32: torch.float32,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT16: torch.float16,
    None: torch.int64,
}
_NAMES: Final = {DType.FLOAT32: "F32", DType.BFLOAT16: "BF16", DType.FLOAT16: "F16", None: "I64"}
CODE_BITS: Final = {WeightType.INT8: 8, WeightType.INT4: 4}
"""Of codes in groups."""
_ITEM_BYTES: Final = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1, "I64": 8}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the engine's weights file."""

    name: str
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes in the engine."""
        return prod(self.shape) * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Source:
    """One checkpoint tensor, in the checkpoint's own spelling and shape."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """One engine weight. The bytes of its entries are those of its parts, one after the other."""

    name: str
    shape: tuple[int, ...]
    dtype: DType | None
    """None is int64, of ids."""
    sources: tuple[Source, ...] = ()
    offset: float = 0.0
    """Added to each element."""
    value: torch.Tensor | None = None
    """Held here in place of sources: what the configuration alone decides."""
    codes: WeightType | None = None
    """INT8, INT4 or FP8, where it is quantised."""
    block: Block | None = None
    """Of fp8 with a scale a block, which divides the blocks of its sources; None where a row has one."""
    num_rows: int | None = None
    """That its one source's rows are cut to, or filled up to with zeros."""
    checkpoint: Checkpoint | None = None
    """That its sources are in, in place of the one that `parts` is given."""

    @property
    def num_bytes(self) -> int:
        """Bytes in the engine."""
        return sum(entry.num_bytes for entry in self.entries)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The tensor it is stored as; those that `builder/manifest.py` puts in its place where it is quantised."""
        if self.codes is None:
            return (Entry(self.name, _NAMES[self.dtype], self.shape),)
        stem = self.name.removesuffix(".weight")
        *rows, in_features = self.shape
        if self.codes is WeightType.FP8:
            scaled = tuple(rows) if self.block is None else num_blocks(self.shape, self.block)
            return Entry(f"{stem}.codes", "F8_E4M3", self.shape), Entry(f"{stem}.scales", "F32", scaled)
        scales = Entry(f"{stem}.scales", "F16", (*rows, in_features // GROUP_SIZE))
        if self.codes is WeightType.INT8:
            return Entry(f"{stem}.codes", "I8", self.shape), scales
        return (
            Entry(f"{stem}.codes", "U8", (*rows, in_features // 2)),
            scales,
            replace(scales, name=f"{stem}.offsets"),
        )

    def parts(self, checkpoint: Checkpoint) -> Iterator[torch.Tensor]:
        """Each source in turn, contiguous and as it is stored, so that one tensor at a time is in memory."""
        checkpoint = self.checkpoint or checkpoint
        return self._values(checkpoint) if self.codes is None else self._codes(checkpoint, self.codes)

    def _codes(self, checkpoint: Checkpoint, kind: WeightType) -> Iterator[torch.Tensor]:
        scales, offsets = [], []  # small: they wait until the codes of every source are out
        for source in self.sources:
            part = _codes_of(checkpoint, source.name, CodeType(kind, self.block))
            yield _fitted(part.codes, self.num_rows).contiguous()
            num_scales = self.num_rows
            if num_scales is not None and self.block is not None:
                num_scales = num_blocks((num_scales, 1), self.block)[0]
            scales.append(_fitted(part.scales, num_scales).contiguous())
            if part.offsets is not None:
                offsets.append(_fitted(part.offsets, self.num_rows).contiguous())
        yield from scales
        yield from offsets

    def _values(self, checkpoint: Checkpoint) -> Iterator[torch.Tensor]:
        loaded = [self.value] if self.value is not None else (checkpoint.load(one.name) for one in self.sources)
        for tensor in loaded:
            shifted = tensor.float() + self.offset if self.offset else tensor
            yield _fitted(shifted.to(TORCH_DTYPES[self.dtype]), self.num_rows).contiguous()


def _fitted(rows: torch.Tensor, num_rows: int | None) -> torch.Tensor:
    if num_rows is None:
        return rows
    missing = rows.new_zeros(max(0, num_rows - len(rows)), *rows.shape[1:])
    return torch.cat([rows[:num_rows], missing])


def _codes_of(checkpoint: Checkpoint, name: str, wanted: CodeType) -> Codes:
    """A tensor as codes: as it is stored, where it is stored so."""
    stored = checkpoint.code_types.get(name)
    if stored == wanted:
        return checkpoint.load_codes(name)
    if wanted.block is not None:
        assert stored is not None, "blocks are kept, and never made"
        assert stored.block is not None
        return _in_smaller_blocks(checkpoint.load_codes(name), stored.block, wanted.block)
    if wanted.weights is WeightType.FP8:
        return quantize_fp8(name, checkpoint.load(name))
    return quantize(name, checkpoint.load(name), CODE_BITS[wanted.weights])


def _in_smaller_blocks(codes: Codes, stored: Block, wanted: Block) -> Codes:
    """The same numbers. Blocks of `wanted` have the inputs of `stored` ones, and rows that divide theirs."""
    scales = codes.scales.repeat_interleave(stored[0] // wanted[0], 0)
    return Codes(codes.codes, scales[: num_blocks(tuple(codes.codes.shape), wanted)[0]], None)
