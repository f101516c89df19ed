"""KvCache: prefixes that are kept, a few blocks of them, and the events that tell of it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

from tensorrt_llm.controls import controls
from tensorrt_llm.recorded import RELEASE

BLOCK_SIZE = 4


class KvCache:
    """Of an engine that reuses blocks, or keeps none. Events are held while there is room, and told once."""

    def __init__(self, reuses: bool, num_events: int) -> None:
        self._reuses = reuses
        self._num_told = 0
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self.events: deque[Any] = deque(maxlen=num_events)
        self._tell({"type": "created", "num_blocks_per_cache_level": [controls.cached_blocks, 0]})

    def num_reused(self, tokens: Sequence[int], salt: str | None) -> int:
        """Tokens of a prompt that need not be computed; the last one always is."""
        hashes = _hashes(tokens[: len(tokens) - 1], salt)
        found = 0
        for one in hashes:
            if not self._reuses or one not in self._blocks:
                break
            found += BLOCK_SIZE
        return found

    def store(self, tokens: Sequence[int], salt: str | None) -> None:
        """A sequence has ended: its full blocks stay, and push others out."""
        if not self._reuses:
            return
        parent = None
        for place, one in enumerate(_hashes(tokens, salt)):
            if one not in self._blocks:
                block = tokens[place * BLOCK_SIZE : (place + 1) * BLOCK_SIZE]
                unique = [{"type": "unique_token", "token_id": token, "token_extra_id": 0} for token in block]
                stored = {"type": "stored_block", "block_hash": one, "tokens": unique, "cache_level": 0, "priority": 35}
                self._tell({"type": "stored", "parent_hash": parent, "blocks": [stored]})
            self._blocks[one] = None
            self._blocks.move_to_end(one)
            parent = one
        while len(self._blocks) > controls.cached_blocks:
            gone, _ = self._blocks.popitem(last=False)
            self._tell({"type": "removed", "block_hashes": [gone]})

    def _tell(self, data: dict[str, Any]) -> None:
        event = {"event_id": self._num_told, "data": data, "window_size": 64}
        self.events.append([event] if RELEASE == "1.0" else event)
        self._num_told += 1


def _hashes(tokens: Sequence[int], salt: str | None) -> list[int]:
    """Of each full block and all before it."""
    ends = range(BLOCK_SIZE, len(tokens) + 1, BLOCK_SIZE)
    texts = (f"{salt}:{list(tokens[:end])}" for end in ends)
    return [int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) for text in texts]
