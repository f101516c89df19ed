"""DiskTier: which cached blocks lie on disk."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from trierarch.python_backend.kv.integrity import require


class DiskTier:
    """Keys in order of use, no more than there is room for; what is being written has its room reserved.

    A key that is pinned is being read, and gives way to nobody.
    """

    def __init__(self, max_blocks: int, keys: Iterable[bytes] = ()) -> None:
        """`keys`: what lies there already, the least recently used first; no more than `max_blocks`."""
        if max_blocks < 1:
            raise ValueError(f"max_blocks is {max_blocks}: a disk tier needs room for at least 1 block")
        self.max_blocks = max_blocks
        self.num_evictions = 0
        self._keys = OrderedDict.fromkeys(keys)
        self._num_reserved = 0
        self._pins: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def touch(self, key: bytes) -> None:
        """It was used just now."""
        self._keys.move_to_end(key)

    def reserve(self) -> tuple[bytes, ...] | None:
        """Make room for one more: the keys that give way. None if all the room is in use."""
        gone: tuple[bytes, ...] = ()
        if len(self._keys) + self._num_reserved == self.max_blocks:
            victim = next((key for key in self._keys if not self._pins[key]), None)
            if victim is None:
                return None
            del self._keys[victim]
            self.num_evictions += 1
            gone = (victim,)
        self._num_reserved += 1
        return gone

    def pin(self, key: bytes) -> None:
        """Keep it until as many `unpin`s."""
        self._pins[key] += 1

    def unpin(self, key: bytes) -> None:
        """Take one pin back."""
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]

    def add(self, key: bytes) -> None:
        """It lies in the room that was reserved for it."""
        self._num_reserved -= 1
        self._keys[key] = None

    def give_up(self) -> None:
        """Nothing came into room that was reserved."""
        self._num_reserved -= 1

    def remove(self, key: bytes) -> None:
        """Forget a key that is not pinned; nothing happens if it is not here."""
        assert not self._pins[key], "it is being read"
        self._keys.pop(key, None)

    def check_integrity(self, num_reserved: int, pins: Counter[bytes]) -> None:
        """Raise IntegrityError unless so much is reserved, all of it fits, and the pins are these."""
        require(self._num_reserved == num_reserved, "blocks being written to disk are miscounted")
        require(len(self._keys) + self._num_reserved <= self.max_blocks, "more blocks on disk than there is room for")
        require(self._pins == pins, f"blocks on disk have pins {self._pins}, and {pins} readers")
        require(pins.keys() <= self._keys.keys(), "a block is read that is not on disk")
