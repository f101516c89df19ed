"""Sizes as people write them: `512MiB`, `2GB`."""

from __future__ import annotations

import re
from typing import Final

from trierarch.builder.errors import ConfigError

BINARY: Final = ("B", "KiB", "MiB", "GiB", "TiB")
UNITS: Final = {
    "": 1,
    **{unit.lower(): 1024**power for power, unit in enumerate(BINARY)},
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
}
SIZE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*)", re.IGNORECASE)


def parse_size(text: str, least: int = 1) -> int:
    """Bytes that `text` means: a number with B, KiB, MiB, GiB, TiB (1024s) or kB, MB, GB, TB (1000s) behind it.

    Raises:
        ConfigError: it means none, or fewer than `least`.
    """
    match = SIZE.fullmatch(text.strip())
    unit = UNITS.get(match["unit"].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"{text!r} is no size: write bytes, or a number and a unit, such as 512MiB or 2GB")
    size = round(float(match["number"]) * int(unit))
    if size < least:
        raise ConfigError(f"{text!r} is less than a byte: write a size such as 512MiB or 2GB")
    return size


def format_size(num_bytes: float) -> str:
    """`num_bytes` with three digits that matter and a binary unit."""
    power = 0
    while abs(num_bytes) >= 1000 and power < len(BINARY) - 1:
        num_bytes /= 1024
        power += 1
    digits = 0 if power == 0 else 2 if num_bytes < 10 else 1 if num_bytes < 100 else 0
    return f"{num_bytes:.{digits}f} {BINARY[power]}"
