"""The 4-bit matrices of a Hugging Face checkpoint, whose inputs stand in groups: three ways to pack the same numbers.

An element is (code - zero) * scale, with a zero and a scale for each row and group. Eight codes stand in an int32, the first
in its lowest bits. Of a weight of (rows, inputs):

    packed   compressed-tensors' pack-quantized (pack_to_int32): `weight_packed` (rows, inputs / 8), `weight_scale`
             (rows, groups), and unless symmetric `weight_zero_point` (rows / 8, groups); codes and zeros are signed, + 8
    gptq     AutoGPTQ's QuantLinear: `qweight` (inputs / 8, rows), `qzeros` (groups, rows / 8), `scales` (groups, rows), and
             `g_idx` (inputs), the group of each; version 1 stores zeros less one, of four bits
    awq      AutoAWQ's WQLinear_GEMM: `qweight` (inputs, rows / 8), `qzeros` (groups, rows / 8), `scales` (groups, rows);
             of eight, those at places 0, 4, 1, 5, 2, 6, 3, 7 are the first to the last

An engine's groups have GROUP_SIZE inputs, and an offset in place of a zero: a group here becomes several there. Codes are kept to
the bit. Scales, and zeros times scales, become float16: an element is off by a hundredth of a scale at most, unless the scale
is below 6e-5, where float16 has fewer digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch

from trierarch.builder.coded_tensor import AGAIN, SCALE_TYPES
from trierarch.builder.codes import Codes, CodeType, pack_nibbles
from trierarch.builder.errors import CheckpointError
from trierarch.builder.manifest import GROUP_SIZE, WeightType
from trierarch.builder.safetensors_header import Header

_PER_WORD: Final = 8
_AWQ_PLACES: Final = (0, 4, 1, 5, 2, 6, 3, 7)
_SYMMETRIC_ZERO: Final = 8


class Layout(StrEnum):
    """How the numbers are packed."""

    PACKED = "packed"
    GPTQ = "gptq"
    AWQ = "awq"


_NAMES: Final = {
    Layout.PACKED: ("weight_packed", "weight_scale", "weight_zero_point"),
    Layout.GPTQ: ("qweight", "scales", "qzeros"),
    Layout.AWQ: ("qweight", "scales", "qzeros"),
}
"""Of codes, scales and zeros."""


@dataclass(frozen=True, slots=True)
class Int4Format:
    """Implements CodedFormat."""

    layout: Layout
    group_size: int | None
    """Inputs that share a scale; None is all of a row."""
    has_zeros: bool
    """Whether there must be zeros; otherwise there may be some, and 8 where there are none."""
    zeros_less_one: bool = False
    """Whether a stored zero is one less."""

    @property
    def label(self) -> str:
        """With the groups."""
        return "INT4, a scale a row" if self.group_size is None else f"INT4, groups of {self.group_size}"

    def find(self, headers: Mapping[str, Header]) -> Mapping[str, Int4Tensor]:
        """All that have codes of this layout."""
        ending = f".{_NAMES[self.layout][0]}"
        stems = [name.removesuffix(ending) for name in headers if name.endswith(ending)]
        return {f"{stem}.weight": _int4_tensor(stem, headers, self) for stem in stems}


@dataclass(frozen=True, slots=True)
class Int4Tensor:
    """Implements CodedTensor."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    """Codes, scales, and zeros where there are any; GPTQ's groups of inputs come last."""
    has_zeros: bool
    has_groups: bool
    form: Int4Format

    @property
    def code_type(self) -> CodeType:
        """As an engine groups them."""
        return CodeType(WeightType.INT4)

    def codes(self, parts: Sequence[torch.Tensor]) -> Codes:
        """Groups of GROUP_SIZE inputs, which the shape allows."""
        nibbles, zeros, scales = self._numbers(parts)
        groups = torch.arange(0, self.shape[1], GROUP_SIZE) // (self.form.group_size or self.shape[1])
        rounded = scales.half()
        offsets = (-zeros * scales).half()
        if not (rounded.isfinite().all() and offsets.isfinite().all()):
            raise CheckpointError(f"{self.name} has a scale that is not finite in float16; {AGAIN}")
        return Codes(pack_nibbles(nibbles), rounded[:, groups], offsets[:, groups])

    def elements(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Not rounded at all."""
        nibbles, zeros, scales = self._numbers(parts)
        groups = torch.arange(self.shape[1]) // (self.form.group_size or self.shape[1])
        return (nibbles.float() - zeros[:, groups]) * scales[:, groups]

    def _numbers(self, parts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes (rows, inputs) uint8 of 0 to 15, zeros and scales (rows, groups) float32."""
        codes, scales = parts[0], parts[1].float()
        layout = self.form.layout
        if layout is Layout.PACKED:
            nibbles = _unpacked(codes)
        elif layout is Layout.GPTQ:
            nibbles, scales = _unpacked(codes.t()), scales.t()
        else:
            nibbles, scales = _unpacked(codes, _AWQ_PLACES).t(), scales.t()
        if not scales.isfinite().all():
            raise CheckpointError(f"{self.name} has a scale that is not finite; {AGAIN}")
        if self.has_groups:
            self._check_groups(parts[-1])
        zeros = self._zeros(parts[2]) if self.has_zeros else torch.full_like(scales, _SYMMETRIC_ZERO)
        return nibbles.contiguous(), zeros, scales

    def _zeros(self, stored: torch.Tensor) -> torch.Tensor:
        if self.form.layout is Layout.PACKED:
            return _unpacked(stored.t()).t()[: self.shape[0]].float()
        zeros = _unpacked(stored, _AWQ_PLACES if self.form.layout is Layout.AWQ else None).t()
        return ((zeros + 1) & 15 if self.form.zeros_less_one else zeros).float()

    def _check_groups(self, stored: torch.Tensor) -> None:
        expected = torch.arange(self.shape[1]) // (self.form.group_size or self.shape[1])
        if not stored.equal(expected.to(stored.dtype)):
            raise CheckpointError(
                f"{self.parts[-1]} has inputs in another order (desc_act): this builder reads groups that lie side by side; "
                "take a checkpoint without it, or the original one"
            )


def _unpacked(words: torch.Tensor, places: tuple[int, ...] | None = None) -> torch.Tensor:
    """(n, words) int32 → (n, 8 words) uint8 of 0 to 15; `places` are those of the first to the last of eight."""
    shifts = 4 * torch.tensor(places or range(_PER_WORD), dtype=torch.int32)
    return ((words[..., None] >> shifts) & 15).to(torch.uint8).flatten(1)


def _int4_tensor(stem: str, headers: Mapping[str, Header], form: Int4Format) -> Int4Tensor:
    codes, scales, zeros = (f"{stem}.{one}" for one in _NAMES[form.layout])
    for name in (scales, zeros) if form.has_zeros else (scales,):
        if name not in headers:
            raise CheckpointError(f"{codes} is INT4, and there is no {name} beside it; {AGAIN}")
    shape = headers[codes][1]
    if headers[codes][0] != "I32" or len(shape) != 2:
        raise CheckpointError(f"{codes} is {headers[codes][0]} {shape} in place of a matrix of I32; {AGAIN}")
    rows, inputs = {
        Layout.PACKED: (shape[0], shape[1] * _PER_WORD),
        Layout.GPTQ: (shape[1], shape[0] * _PER_WORD),
        Layout.AWQ: (shape[1] * _PER_WORD, shape[0]),
    }[form.layout]
    groups = -(-inputs // (form.group_size or inputs))
    wanted = {scales: (rows, groups), zeros: (-(-rows // _PER_WORD), groups)}
    if form.layout is not Layout.PACKED:
        wanted = {name: (second, first) for name, (first, second) in wanted.items()}
    for name, its_shape in wanted.items():
        if name in headers and headers[name][1] != its_shape:
            raise CheckpointError(
                f"{name} has shape {headers[name][1]}, and {codes} of {shape} wants {its_shape} in {form.label}; {AGAIN}"
            )
    if zeros in headers and headers[zeros][0] != "I32":
        raise CheckpointError(f"{zeros} is of type {headers[zeros][0]} in place of I32; {AGAIN}")
    if headers[scales][0] not in SCALE_TYPES:
        raise CheckpointError(
            f"{scales} is of type {headers[scales][0]}: scales are read as {', '.join(SCALE_TYPES)}; {AGAIN}"
        )
    order = f"{stem}.g_idx"
    has_groups = form.layout is Layout.GPTQ and order in headers
    parts = (codes, scales, *((zeros,) if zeros in headers else ()), *((order,) if has_groups else ()))
    return Int4Tensor(f"{stem}.weight", (rows, inputs), parts, zeros in headers, has_groups, form)
