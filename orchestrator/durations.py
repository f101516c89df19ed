"""Durations as people write them: `90`, `60s`, `5m`, `1h`."""

from __future__ import annotations

import re
from typing import Final

from trierarch.builder.errors import ConfigError

SECONDS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*)", re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Seconds that `text` means: a number with ms, s, m or h behind it; seconds without.

    Raises:
        ConfigError: it means none.
    """
    match = DURATION.fullmatch(text.strip())
    unit = SECONDS.get(match["unit"].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"{text!r} is no duration: write seconds, or a number and a unit, such as 60s or 5m")
    return float(match["number"]) * unit
