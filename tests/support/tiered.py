"""Executors with tiers behind a KV cache that is too small, asked and waited for."""

from __future__ import annotations

import dataclasses
import queue
from pathlib import Path
from typing import Any

import pytest

from support.eventually import eventually
from support.scheduling import make_request
from support.toy_mover import AlwaysPays
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.loop import StepExecutor
from trierarch.python_backend.executors.offload.mover import Mover
from trierarch.python_backend.kv.offload_stats import OffloadStats, TierStats
from trierarch.python_backend.request import TokenDelta

BLOCK_SIZE = 16
PROMPTS = [tuple(2 + (7 * number + index * (number + 1)) % 40 for index in range(40)) for number in range(6)]
"""Two full blocks each, and a part of a third."""


def let_everything_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model computes as fast as it copies; tests/unit/kv/test_offload.py has what becomes of that."""
    place = "trierarch.python_backend.executors.offload.opening.MeasuredPayoff"
    monkeypatch.setattr(place, lambda block_size: AlwaysPays())


def block_bytes(engine: Path) -> int:
    """Of a block, on all ranks together."""
    kv_cache = EngineManifest.load(engine).kv_cache
    return kv_cache.block_size * kv_cache.bytes_per_token


@dataclasses.dataclass
class Served:
    """An executor, asked and waited for."""

    executor: StepExecutor
    num_asked: int = 0

    def submit(self, prompt: tuple[int, ...], **fields: Any) -> queue.SimpleQueue[TokenDelta]:
        """Ask; greedy and without end tokens unless `fields` say otherwise."""
        deltas: queue.SimpleQueue[TokenDelta] = queue.SimpleQueue()
        request = make_request(
            str(self.num_asked), prompt, **{"max_tokens": 6, "temperature": 0.0, "end_ids": (), **fields}
        )
        self.num_asked += 1
        self.executor.submit(request, deltas.put)
        return deltas

    def ask(self, prompt: tuple[int, ...], **fields: Any) -> list[int]:
        """The answer to a prompt, alone."""
        return answer(self.submit(prompt, **fields))

    @property
    def offload(self) -> OffloadStats:
        offload = self.executor.stats().offload
        assert offload is not None
        return offload

    @property
    def disk(self) -> TierStats:
        assert self.offload.disk is not None
        return self.offload.disk

    def settle(self) -> None:
        """Wait until nothing is written any more: as many blocks as are on disk are files."""
        eventually(lambda: self.executor._mover is not None and is_settled(self.executor._mover), "files settle")


def is_settled(mover: Mover) -> bool:
    """Whether it writes nothing, and the books know it."""
    return not mover.has_news and not mover._offload._being_saved


def answer(deltas: queue.SimpleQueue[TokenDelta], num_sequences: int = 1) -> list[int]:
    """All tokens of a request, sequence by sequence."""
    tokens: dict[int, list[int]] = {index: [] for index in range(num_sequences)}
    num_ended = 0
    while num_ended < num_sequences:
        delta = deltas.get(timeout=60)
        tokens[delta.index] += delta.token_ids
        assert delta.error is None, delta.error
        num_ended += delta.finish_reason is not None
    return [token for its in tokens.values() for token in its]
