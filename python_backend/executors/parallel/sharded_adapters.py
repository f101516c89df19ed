"""ShardedAdapters: the parts of adapters that one rank holds, by the number that all ranks know an adapter by."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from trierarch.python_backend.executors.torch.adapter import TorchAdapter


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ShardedAdapter:
    """An adapter that every rank has its part of. Implements Arranged."""

    number: int
    num_bytes: int
    """Over all ranks."""


class ShardedAdapters:
    """One rank's parts. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[int, TorchAdapter] = {}

    def put(self, number: int, part: TorchAdapter) -> None:
        """Hold it until it is dropped."""
        with self._lock:
            self._parts[number] = part

    def of(self, number: int) -> TorchAdapter:
        """The part of an adapter."""
        with self._lock:
            return self._parts[number]

    def drop(self, number: int) -> None:
        """Let go of it, if it is there."""
        with self._lock:
            self._parts.pop(number, None)
