"""KvEvent: what became of blocks that are kept for prefixes, as whoever routes requests wants to know it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class KvEventKind(StrEnum):
    """As TensorRT-LLM spells them."""

    CREATED = "created"
    """The cache is there, and empty."""
    STORED = "stored"
    """Blocks hold a prefix, and others may begin with it."""
    REMOVED = "removed"
    """Blocks were evicted."""
    UPDATED = "updated"
    """A block went to another level of memory, or got another priority."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvEvent:
    """One of them. It has hashes and no tokens: those are somebody's prompt."""

    number: int
    """Consecutive from 0."""
    kind: KvEventKind
    block_hashes: tuple[int, ...] = ()
    """Of 64 bits, or of 256; of stored blocks in the order of the prefix."""
    parent_hash: int | None = None
    """Of the block before the first stored one; None begins a prompt."""
