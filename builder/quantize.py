"""Quantizing by rounding to the nearest code, group by group; the format is the one in `builder/manifest.py`."""

from __future__ import annotations

from typing import Final

import torch

from trierarch.builder.codes import Codes, pack_nibbles
from trierarch.builder.errors import CheckpointError, ConfigError
from trierarch.builder.manifest import GROUP_SIZE

_CHUNK_GROUPS: Final = 4096
"""Groups worked on at once: their floats and a few temporaries of that size fit a core's cache."""
_INT8_MAX: Final = 127
_INT4_MAX: Final = 15
_SHRINKS: Final = (-0.02, 0.02, 0.07)
"""Shares of a group's range that the search takes from either end before it fits the scale and the offset. Nine pairs
leave a fifth less squared error than the range itself; sixteen gain one percent more at half the speed."""


def quantize(name: str, values: torch.Tensor, bits: int) -> Codes:
    """values: (rows, in_features), in_features a multiple of GROUP_SIZE. `name` is for errors.

    int8 is symmetric: the largest magnitude of a group becomes 127. int4 has the scale and the offset that leave the
    least squared error among those tried. Both are rounded to float16 before the codes are chosen.

    Raises:
        CheckpointError: a value is NaN or infinite.
        ConfigError: the values are too large for float16 scales.
    """
    rows_at_once = max(1, _CHUNK_GROUPS * GROUP_SIZE // values.shape[1])
    chunks = [_quantize(name, chunk.float(), bits) for chunk in torch.split(values, rows_at_once)]
    codes, scales, offsets = zip(*((one.codes, one.scales, one.offsets) for one in chunks), strict=True)
    return Codes(torch.cat(codes), torch.cat(scales), None if offsets[0] is None else torch.cat(offsets))


def _quantize(name: str, values: torch.Tensor, bits: int) -> Codes:
    if not values.isfinite().all():
        raise CheckpointError(f"{name} holds NaN or infinity; download the checkpoint again")
    num_rows, in_features = values.shape
    # (GROUP_SIZE, num_groups): what is done to all groups runs along memory.
    groups = values.reshape(-1, GROUP_SIZE).T.contiguous()
    scales, offsets = _int8_scales(groups) if bits == 8 else _int4_scales(groups)
    if not (scales.isfinite().all() and offsets.isfinite().all()):
        raise ConfigError(
            f"quantization is int{bits}: {name} holds {values.abs().max():g}, beyond what float16 scales reach; "
            "leave the model unquantised"
        )
    lowest, highest = (-_INT8_MAX, _INT8_MAX) if bits == 8 else (0, _INT4_MAX)
    codes = _nearest(groups, scales, offsets, lowest, highest).T.reshape(num_rows, in_features)
    scales, offsets = (one.view(num_rows, -1).half() for one in (scales, offsets))
    if bits == 8:
        return Codes(codes.to(torch.int8), scales, None)
    return Codes(pack_nibbles(codes.to(torch.uint8)), scales, offsets)


def _int8_scales(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = _as_float16(groups.abs().amax(0) / _INT8_MAX)
    return scales, torch.zeros_like(scales)


def _int4_scales(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best of the range itself and of lines fitted to the codes that shrunken ranges give."""
    low = groups.amin(0)
    spread = groups.amax(0) - low
    best_scales, best_offsets = _as_float16(spread / _INT4_MAX), _as_float16(low)
    best = _squared_error(groups, best_scales, best_offsets)
    raised = groups - low
    for from_low in _SHRINKS:
        for from_high in _SHRINKS:
            shrunk = spread * (1 - from_low - from_high) / _INT4_MAX
            slope, intercept = _fit(_nearest(raised, shrunk, from_low * spread, 0, _INT4_MAX), raised)
            scales, offsets = _as_float16(slope), _as_float16(low + intercept)
            error = _squared_error(groups, scales, offsets)
            is_better = error < best
            best = torch.where(is_better, error, best)
            best_scales = torch.where(is_better, scales, best_scales)
            best_offsets = torch.where(is_better, offsets, best_offsets)
    return best_scales, best_offsets


def _fit(codes: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares: the slope (0 where all codes of a group are one) and the intercept of values over codes."""
    num_codes, num_values = _sum(codes), _sum(values)
    variance = GROUP_SIZE * _sum(codes * codes) - num_codes * num_codes
    covariance = GROUP_SIZE * _sum(codes * values) - num_codes * num_values
    slope = torch.where(variance > 0, covariance / variance, 0.0)
    return slope, (num_values - slope * num_codes) / GROUP_SIZE


def _squared_error(groups: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    codes = _nearest(groups, scales, offsets, 0, _INT4_MAX)
    return _sum((codes * scales + offsets - groups).square())


def _nearest(
    groups: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor, lowest: int, highest: int
) -> torch.Tensor:
    """The codes, as floats; 0 where a scale is 0, since nothing can be told apart there."""
    steps = torch.where(scales > 0, scales, torch.inf)
    return ((groups - offsets) / steps).round_().clamp_(lowest, highest)


def _sum(groups: torch.Tensor) -> torch.Tensor:
    """Over each group, by halves: one order of addition on every machine, so that equal builds give equal bytes."""
    while len(groups) > 1:
        half = len(groups) // 2
        groups = groups[:half] + groups[half:]
    return groups[0]


def _as_float16(values: torch.Tensor) -> torch.Tensor:
    return values.half().float()
