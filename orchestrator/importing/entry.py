"""Entry: one setting of an imported repository, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fate(StrEnum):
    """What becomes of a setting."""

    CARRIED = "carried over"
    NOT_NEEDED = "not needed any more"
    NONE = "no counterpart"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the report."""

    model: str
    name: str
    value: str
    fate: Fate
    why: str
    """Into what it was carried over, or why it is not needed, or what to do in its place."""
