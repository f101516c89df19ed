"""The invariants of scheduling, checked as a whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from trierarch.python_backend.kv.integrity import require
from trierarch.python_backend.scheduling.live_request import LiveRequest
from trierarch.python_backend.sequence import Sequence, SequenceStatus


def check_places(live: Collection[LiveRequest], waiting: Iterable[Sequence], running: Iterable[Sequence]) -> None:
    """Raise IntegrityError unless every unfinished sequence of `live` stands in exactly one place, as its status says."""
    held_back = [sequence for request in live for sequence in request.held_back]
    idle, running = [*waiting, *held_back], list(running)
    unfinished = [s for request in live for s in request.sequences if s.status is not SequenceStatus.FINISHED]
    placed = sorted(sequence.sequence_id for sequence in [*idle, *running])
    require(placed == sorted(s.sequence_id for s in unfinished), "an unfinished sequence is lost or in two places")
    require(len(placed) == sum(request.num_unfinished for request in live), "unfinished sequences are miscounted")
    for sequence in running:
        name = f"running sequence {sequence.sequence_id}"
        require(sequence.status is SequenceStatus.RUNNING, f"{name} is {sequence.status}")
        require(sequence.num_computed_tokens < sequence.num_tokens, f"{name} has nothing to compute")
        digest = "" if sequence.adapter is None else sequence.adapter.digest
        require(digest == sequence.request.adapter_digest, f"{name} runs with adapter {digest!r}")
    for sequence in idle:
        name = f"waiting sequence {sequence.sequence_id}"
        require(sequence.status in (SequenceStatus.WAITING, SequenceStatus.PREEMPTED), f"{name} is {sequence.status}")
        require(not sequence.block_table and sequence.num_computed_tokens == 0, f"{name} holds blocks")
        require(sequence.adapter is None, f"{name} holds an adapter")
