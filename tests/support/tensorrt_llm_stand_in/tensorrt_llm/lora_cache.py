"""LoraCache: adapters that the engine holds, a few at a time."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

from tensorrt_llm.bindings.internal.batch_manager import LoraCacheFullException, PeftTaskNotCachedException
from tensorrt_llm.controls import controls


class LoraCache:
    """What the library believes to be there, and what is, are two things: an adapter is loaded by one who believes that
    it is not, and one that was let go of is missed by a request that came without its weights."""

    def __init__(self) -> None:
        self._believed: set[int] = set()
        self._misses: dict[int, int] = {}
        self._held: OrderedDict[int, int] = OrderedDict()  # task -> what it adds to every token
        self._users: dict[int, int] = {}

    def enter(self, lora_request: Any) -> int:
        """What an adapter adds to every token, for a request that begins."""
        task = lora_request.lora_int_id
        if task not in self._believed:
            shift = _read(Path(lora_request.lora_path))
            self._believed.add(task)
            self._make_room(task)
            self._held[task] = shift
            controls.num_lora_loads += 1
        elif task not in self._held:
            controls.num_lora_misses += 1
            self._misses[task] = self._misses.get(task, 0) + 1
            if self._misses[task] >= controls.num_stale_misses:
                self._believed.discard(task)
            raise PeftTaskNotCachedException(
                f"LoRA task {task} not found in cache. Please send LoRA weights with request"
            )
        self._held.move_to_end(task)
        self._users[task] = self._users.get(task, 0) + 1
        return self._held[task]

    def leave(self, lora_request: Any) -> None:
        """A request has ended."""
        self._users[lora_request.lora_int_id] -= 1

    def _make_room(self, task: int) -> None:
        while len(self._held) >= controls.lora_slots:
            idle = next((held for held in self._held if not self._users.get(held)), None)
            if idle is None:
                self._believed.discard(task)
                raise LoraCacheFullException("Cache is full. There are no done tasks to evict")
            del self._held[idle]


def _read(path: Path) -> int:
    """A number of an adapter's bytes; both files have to be there."""
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"] == "LORA"
    return shift_of((path / "adapter_model.safetensors").read_bytes())


def shift_of(weights: bytes) -> int:
    """What an adapter with these bytes adds to every token."""
    return int(hashlib.sha256(weights).hexdigest()[:8], 16)
