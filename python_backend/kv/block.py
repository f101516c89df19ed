"""Block: `block_size` consecutive KV slots, the unit in which key-value memory is given out and shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trierarch.python_backend.kv.stay import Stay

DEFAULT_STAY: Final = Stay(35, None)
"""Of blocks that no request said anything of; the priority is TensorRT-LLM's."""


@dataclass(slots=True, eq=False)
class Block:
    """One block of the pool. It is used (held by sequences), free, or free but still keyed: a prefix nobody holds.

    A keyed block is full and computed and is never written again until it is evicted, so any number may share it.
    """

    block_id: int
    ref_count: int = 0
    """Block tables it stands in."""
    key: bytes | None = None
    """Chain key under which the prefix cache finds it."""
    stay: Stay = DEFAULT_STAY
    """Changes only while it is held; so does the key."""
    leaves_at: float | None = None
    """While it is free, and stays for a time: when that is over."""
