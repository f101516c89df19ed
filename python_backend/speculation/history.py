"""History: what finished sequences said, shared within each tenant and bounded over all of them."""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from typing import Final

from trierarch.python_backend.speculation.suffix_index import GAP, SuffixIndex
from trierarch.python_backend.speculation.tenants import Tenant, Tenants

_EPISODE_BYTES: Final = 150
"""What Python takes for the note of one episode."""
GRAMS: Final = (8, 2)
"""One token in common with another sequence says too little."""
_SLOT_BYTES: Final = 8 + 4 * len(GRAMS)
"""A token, and a link for each n-gram that ends there."""
_HEAD_BYTES: Final = 4 * len(GRAMS)
_FIXED_BYTES: Final = 2048
"""What the objects take that the ring's arrays and the notes lie in."""
_NOTES_SHARE: Final = 8
"""One byte in so many is for notes, the others for tokens."""
_LONGEST_SHARE: Final = 4
"""One episode takes at most one slot in so many: a long answer does not push out all the others."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One finished sequence: the slots from its gap at `start` up to `end`."""

    start: int
    end: int
    tenant: Tenant


class History:
    """A ring of episodes: a new one is written over the oldest, which are forgotten whole.

    All slots are there from the beginning, so nothing is ever moved or hashed anew. An episode lies in one piece: if it
    does not fit before the end of the ring it begins at slot 0.
    """

    def __init__(self, num_bytes: int, tenants: Tenants) -> None:
        """Of at most `num_bytes`, notes included; too few to be of use, 0 among them, keep nothing."""
        self._tenants = tenants
        self._most_note_bytes = num_bytes // _NOTES_SHARE
        ring_bytes = num_bytes - self._most_note_bytes - _FIXED_BYTES
        # As many heads as slots would make chains one n-gram long; the power of two below that comes near.
        num_heads = 1 << max(0, (ring_bytes // (_SLOT_BYTES + _HEAD_BYTES)).bit_length() - 1)
        self._num_slots = max(0, (ring_bytes - num_heads * _HEAD_BYTES) // _SLOT_BYTES)
        self.longest = max(0, self._num_slots // _LONGEST_SHARE - 1)
        """Tokens of one episode at most; 0 where nothing is kept."""
        self.index = SuffixIndex(GRAMS, num_heads, self._num_slots) if self.longest else SuffixIndex(GRAMS, 1)
        self._ring_bytes = num_heads * _HEAD_BYTES + self._num_slots * _SLOT_BYTES
        self._episodes: deque[Episode] = deque()
        self._note_bytes = 0
        self._next = 0

    def __len__(self) -> int:
        return len(self._episodes)

    @property
    def num_bytes(self) -> int:
        """Bytes it takes now: the ring, used or not, and the notes."""
        return _FIXED_BYTES + self._ring_bytes + self._note_bytes if self.longest else 0

    def add(self, tenant: Tenant, stored: array[int]) -> None:
        """Remember an episode of `tenant`'s stored tokens; of too many, the last `longest`.

        Nothing of a tenant whose names alone would take much of what all have.
        """
        if not self.longest or not stored or tenant.num_bytes > self._most_note_bytes // _LONGEST_SHARE:
            return
        text = array("q", (GAP,)) + stored[-self.longest :]
        start = self._next
        if start + len(text) > self._num_slots:
            # What lies between here and the end is older than what lies at slot 0.
            self._forget_from(start, self._num_slots)
            start = 0
        self._forget_from(start, start + len(text))
        self.index.write(start, text)
        self._next = start + len(text)
        self._episodes.append(Episode(start, self._next, self._tenants.hold(tenant.adapter, tenant.cache_salt)))
        tenant.num_episodes += 1
        self._note_bytes += _EPISODE_BYTES + (tenant.num_bytes if tenant.num_episodes == 1 else 0)
        while self._note_bytes > self._most_note_bytes:
            self._forget_oldest()

    def _forget_from(self, start: int, end: int) -> None:
        while self._episodes and start <= self._episodes[0].start < end:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        episode = self._episodes.popleft()
        self.index.erase(episode.start, episode.end)
        tenant = episode.tenant
        tenant.num_episodes -= 1
        self._note_bytes -= _EPISODE_BYTES + (tenant.num_bytes if tenant.num_episodes == 0 else 0)
        self._tenants.release(tenant)
