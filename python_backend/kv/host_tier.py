"""HostTier: which cached block lies in which slot of host memory."""

from __future__ import annotations

from collections import Counter, OrderedDict

from trierarch.python_backend.kv.disk_tier import DiskTier
from trierarch.python_backend.kv.integrity import require


class HostTier:
    """Slots by key, each in O(1). What is on disk too gives way first, then the least recently used.

    A key that is pinned is copied from or to, and gives way to nobody.
    """

    def __init__(self, num_slots: int) -> None:
        """All slots are free."""
        if num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}: a host tier needs at least 1 slot")
        self.num_slots = num_slots
        self.num_evictions = 0
        self._free = list(range(num_slots - 1, -1, -1))
        self._slots: dict[bytes, int] = {}
        self._unsaved: OrderedDict[bytes, None] = OrderedDict()  # the least recently used first
        self._saved: OrderedDict[bytes, None] = OrderedDict()  # likewise; on disk too
        self._pins: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: bytes) -> bool:
        return key in self._slots

    @property
    def num_replaceable(self) -> int:
        """Slots that are free, or whose content is on disk too."""
        return len(self._free) + len(self._saved)

    def slot(self, key: bytes) -> int:
        """Where a key's block lies; KeyError if it does not."""
        return self._slots[key]

    def touch(self, key: bytes) -> None:
        """It was used just now."""
        (self._saved if key in self._saved else self._unsaved).move_to_end(key)

    def add(self, key: bytes, is_saved: bool = False) -> int | None:
        """A slot for a new key, taken from another if need be; None if copies are under way in all of them."""
        if not self._free:
            victim = self._victim()
            if victim is None:
                return None
            self.remove(victim)
            self.num_evictions += 1
        self._slots[key] = self._free.pop()
        (self._saved if is_saved else self._unsaved)[key] = None
        return self._slots[key]

    def remove(self, key: bytes) -> None:
        """Forget a key that is not pinned; nothing happens if it is not here."""
        assert not self._pins[key], "its slot is in use"
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._free.append(slot)
            self._saved.pop(key, None)
            self._unsaved.pop(key, None)

    def pin(self, key: bytes) -> int:
        """Keep it until as many `unpin`s; its slot."""
        self._pins[key] += 1
        return self._slots[key]

    def unpin(self, key: bytes) -> None:
        """Take one pin back."""
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]

    def oldest_unsaved(self) -> bytes | None:
        """The next that would be lost, and is not pinned."""
        return next((key for key in self._unsaved if not self._pins[key]), None)

    def set_saved(self, key: bytes, is_saved: bool) -> None:
        """It is on disk from now on, or no longer; nothing happens if it is not here. Its use is as recent as it was found."""
        if key in self._slots:
            (self._unsaved if is_saved else self._saved).pop(key, None)
            (self._saved if is_saved else self._unsaved)[key] = None

    def check_integrity(self, pins: Counter[bytes], on_disk: DiskTier | None) -> None:
        """Raise IntegrityError unless every slot is free or one key's, the pins are these, and what is saved is on disk."""
        slots = sorted([*self._free, *self._slots.values()])
        require(slots == list(range(self.num_slots)), "a slot of the host is lost, or in two places")
        kinds = sorted([*self._saved, *self._unsaved])
        require(kinds == sorted(self._slots), "a key of the host is in no order of use, or in two")
        require(self._pins == pins, f"slots of the host have pins {self._pins}, and {pins} copies")
        require(pins.keys() <= self._slots.keys(), "a slot is copied that is nobody's")
        require(
            all(on_disk is not None and key in on_disk for key in self._saved), "a block is not on disk, and said to be"
        )

    def _victim(self) -> bytes | None:
        unpinned = (key for order in (self._saved, self._unsaved) for key in order if not self._pins[key])
        return next(unpinned, None)
