"""Rows of numbers as codes of a byte, each row with a scale of its own: an element is scale * code."""

from __future__ import annotations

from typing import Final

import torch

MAX_CODES: Final = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The largest code of each type that rows are rounded to."""


def quantize_rows(rows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Round rows to codes, the largest of each to ±MAX_CODES. rows: (n, size) → codes, of `dtype`, and scales (n) float32.

    A row that is not finite has a scale that is not finite, so that it does not pass for another.
    """
    rows = rows.float()
    most = MAX_CODES[dtype]
    scales = rows.abs().amax(1) / most
    codes = torch.nan_to_num(rows / scales[:, None], nan=0.0)
    if dtype is torch.int8:
        codes = codes.round()
    return codes.clamp(-most, most).to(dtype), scales


def as_bytes(codes: torch.Tensor) -> torch.Tensor:
    """The same memory in a type that every device moves: torch indexes E4M3 on few."""
    return codes.view(torch.uint8) if codes.dtype is torch.float8_e4m3fn else codes
