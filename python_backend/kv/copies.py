"""Copies of blocks between the tiers: what the bookkeeping asks for, and what it hears back.

A copy's source never changes while it is under way, and its target is nobody else's:

    what leaves the device    is copied before the step that writes over the block begins
    what comes back           goes into blocks that only its recall holds, until it is told that they are filled
    a slot of host memory     keeps its content as long as it is copied from
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Tier(StrEnum):
    """Where a cached block lies that is not on the device."""

    HOST = "host"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Leaving:
    """A block of the device to be copied into a slot of host memory, before it is written over."""

    block_id: int
    slot: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """A block of the device to be filled."""

    key: bytes
    block_id: int
    slot: int | None
    """Of host memory; None is on disk."""

    @property
    def tier(self) -> Tier:
        """Where it comes from."""
        return Tier.DISK if self.slot is None else Tier.HOST


@dataclass(frozen=True, slots=True)
class Recall:
    """Blocks that are brought back together, for one sequence."""

    number: int
    arrivals: tuple[Arrival, ...]


@dataclass(frozen=True, slots=True)
class Saving:
    """A slot of host memory to be written to disk, once the blocks that give way to it are deleted there."""

    key: bytes
    slot: int
    deleted: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Copies:
    """What is to be copied now: all that leaves first, then the others in any order."""

    leaving: tuple[Leaving, ...] = ()
    recalls: tuple[Recall, ...] = ()
    savings: tuple[Saving, ...] = ()


@dataclass(frozen=True, slots=True)
class Recalled:
    """A recall is over."""

    number: int
    lost: frozenset[bytes] = frozenset()
    """Keys of blocks that could not be filled: they are computed again."""
    seconds: Mapping[Tier, float] = field(default_factory=dict)
    """That its copies took."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A slot was written to disk, or could not be."""

    key: bytes
    is_done: bool
