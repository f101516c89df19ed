"""What is known of adapters from outside: of each one, and of all together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

NUM_LOAD_DURATIONS: Final = 64
"""Latest loads whose durations are kept."""


class AdapterStatus(StrEnum):
    """Where an adapter stands."""

    REGISTERED = "registered"
    """On disk."""
    LOADED = "loaded"
    """In memory too."""
    ACTIVE = "active"
    """Sequences run with it."""
    FAILED = "failed"
    """It cannot be used; the reason is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """A registered adapter: the version that its name means now."""

    name: str
    digest: str = ""
    """Empty where it cannot be read; so with the next two."""
    rank: int = 0
    num_bytes: int = 0
    """Of its files."""
    status: AdapterStatus
    reason: str = ""
    """Why it failed."""
    num_requests: int = 0
    """Waiting or running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterStats:
    """Counted between two steps."""

    max_adapters: int
    """Different ones in one step."""
    num_registered: int = 0
    num_loaded: int
    """Versions in memory."""
    num_active: int
    """Of those, with running sequences."""
    loaded_bytes: int
    """Taken by loaded versions, the draft model's weights included."""
    running: tuple[str, ...]
    """Names of those with running sequences, sorted; so with the next one."""
    waiting: tuple[str, ...]
    """Names of those with waiting sequences and no running ones."""
    num_loads: int
    num_load_failures: int
    num_evictions: int
    """Loaded versions that gave way to others."""
    load_seconds: float
    """Of all loads that succeeded, together."""
    load_durations: tuple[float, ...] = ()
    """Seconds of the latest of those, the last one last: at most NUM_LOAD_DURATIONS."""
