"""AdapterSlots: the places of the adapters that take part in steps."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection

from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.adapters.cache import LoadedAdapter
from trierarch.python_backend.kv.integrity import require


class AdapterSlots:
    """Pure bookkeeping. A slot keeps its adapter's digest after the last holder has gone, so that it finds it again."""

    def __init__(self, num_slots: int) -> None:
        """All free."""
        self.num_slots = num_slots
        self.num_evictions = 0
        """Adapters that lost their slot to another."""
        self._slots: OrderedDict[str, int] = OrderedDict()  # digest -> slot, the longest unused first
        self._active: dict[str, ActiveAdapter] = {}
        self._holders: Counter[str] = Counter()

    @property
    def num_active(self) -> int:
        """Slots that somebody holds."""
        return len(self._active)

    def is_active(self, digest: str) -> bool:
        """Whether somebody holds it."""
        return digest in self._active

    def has_room(self, digest: str) -> bool:
        """Whether `acquire` would find a slot."""
        return digest in self._active or len(self._active) < self.num_slots

    def acquire(self, digest: str, loaded: LoadedAdapter, needed: Collection[str] = ()) -> ActiveAdapter:
        """Hold it once more; all holders get the same. There must be room. Those `needed` soon are the last to lose a slot."""
        active = self._active.get(digest)
        if active is None:
            slot = self._slots.get(digest) or self._free_slot(needed)
            active = self._active[digest] = ActiveAdapter(digest, slot, loaded.weights, loaded.draft_weights)
            self._slots[digest] = slot
        self._slots.move_to_end(digest)
        self._holders[digest] += 1
        return active

    def release(self, digest: str) -> None:
        """Hold it once less."""
        self._holders[digest] -= 1
        if self._holders[digest] == 0:
            del self._holders[digest], self._active[digest]

    def check_integrity(self, num_holders: Counter[str]) -> None:
        """Raise IntegrityError unless the holders are these, and every slot is one adapter's."""
        require(self._holders == num_holders, f"adapters are held by {self._holders}, and run with {num_holders}")
        require(self._active.keys() == self._holders.keys(), "an adapter is active and nobody holds it")
        slots = list(self._slots.values())
        require(len(slots) == len(set(slots)), "two adapters have one slot")
        require(all(1 <= slot <= self.num_slots for slot in slots), "an adapter has a slot that is none")
        require(
            all(self._slots.get(digest) == active.slot for digest, active in self._active.items()),
            "an active adapter lost its slot",
        )

    def _free_slot(self, needed: Collection[str]) -> int:
        if len(self._slots) < self.num_slots:
            return len(self._slots) + 1
        idle = [digest for digest in self._slots if digest not in self._active]
        assert idle, "has_room was not asked"
        self.num_evictions += 1
        return self._slots.pop(next((digest for digest in idle if digest not in needed), idle[0]))
