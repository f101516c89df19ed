"""Quantizing to E4M3 with a scale a row; the format is the one in `builder/manifest.py`."""

from __future__ import annotations

from typing import Final

import torch

from trierarch.builder.codes import Codes
from trierarch.builder.errors import CheckpointError

E4M3: Final = torch.float8_e4m3fn
E4M3_MAX: Final = torch.finfo(E4M3).max
"""448; what is larger by more than half a step becomes NaN."""
_CHUNK_ELEMENTS: Final = 1 << 17
"""Worked on at once: their floats and a few temporaries of that size fit a core's cache."""


def quantize_fp8(name: str, values: torch.Tensor) -> Codes:
    """The largest magnitude of each row becomes 448. values: (rows, in_features). `name` is for errors.

    Raises:
        CheckpointError: a value is NaN or infinite.
    """
    chunks = torch.split(values, max(1, _CHUNK_ELEMENTS // values.shape[1]))
    codes, scales = zip(*(_quantize(name, chunk.float()) for chunk in chunks), strict=True)
    return Codes(torch.cat(codes), torch.cat(scales), None)


def _quantize(name: str, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if not values.isfinite().all():
        raise CheckpointError(f"{name} holds NaN or infinity; download the checkpoint again")
    # Below that a row over its scale would overflow on the way: it is next to zero, and becomes small codes.
    scales = (values.abs().amax(1) / E4M3_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    return (values / scales[:, None]).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3), scales
