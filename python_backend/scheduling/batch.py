"""RunningBatch: the sequences that hold blocks and adapters, and compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from trierarch.python_backend.adapters.pool import AdapterPool
from trierarch.python_backend.kv.manager import KVCacheManager
from trierarch.python_backend.scheduling.config import SchedulerConfig
from trierarch.python_backend.scheduling.plan import ScheduledSequence
from trierarch.python_backend.scheduling.queue import standing
from trierarch.python_backend.sequence import Sequence, SequenceStatus


class RunningBatch:
    """Owns what running sequences hold: they have blocks and an adapter from `start` to `stop` and at no other time."""

    def __init__(self, config: SchedulerConfig, kv: KVCacheManager, adapters: AdapterPool | None = None) -> None:
        """An empty batch. `adapters` None runs the base model alone."""
        self._config = config
        self._kv = kv
        self._adapters = adapters
        self._running: dict[int, Sequence] = {}  # sequence_id -> sequence, in the order they started
        self._stopped: list[int] = []  # ids of those that left since `take_stopped`

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Sequence]:
        """In the order they started; sequences may start and stop meanwhile."""
        return iter(tuple(self._running.values()))

    @property
    def is_full(self) -> bool:
        """Whether no sequence may start."""
        return len(self._running) >= self._config.max_batch_size

    @property
    def num_stopped(self) -> int:
        """Sequences that left since the last `take_stopped`."""
        return len(self._stopped)

    def fits(self, sequence: Sequence, prefix: list[int]) -> bool:
        """Whether there are blocks for a sequence to start after the computed blocks `prefix`.

        All its known tokens must fit beside what the running ones still need for theirs, and one block more for each
        of them: a sequence that starts on less would soon cost a preemption. Alone it always fits.
        """
        num_blocks_for = self._kv.num_blocks_for
        num_reserved = sum(
            max(0, num_blocks_for(running.num_tokens) + 1 - len(running.block_table))
            for running in self._running.values()
        )
        return self._kv.can_start(prefix, sequence.num_tokens, num_reserved)

    def start(self, sequence: Sequence, prefix: list[int], now: int) -> bool:
        """Let a sequence run from the end of the computed blocks `prefix`; False, if its adapter is gone, does nothing."""
        if sequence.request.adapter is not None:
            assert self._adapters is not None, "a request with an adapter was let in"
            sequence.adapter = self._adapters.acquire(sequence.request.adapter)
            if sequence.adapter is None:
                return False
        sequence.blocked_ns = None
        self._kv.start(sequence, prefix)
        sequence.status = SequenceStatus.RUNNING
        sequence.first_scheduled_ns = sequence.first_scheduled_ns or now
        self._running[sequence.sequence_id] = sequence
        return True

    def stop(self, sequence: Sequence, status: SequenceStatus) -> None:
        """Take back what it holds; it is `status` from now on."""
        del self._running[sequence.sequence_id]
        self._kv.free(sequence)
        if sequence.adapter is not None:
            assert self._adapters is not None
            self._adapters.release(sequence.adapter)
            sequence.adapter = None
        sequence.status = status
        self._stopped.append(sequence.sequence_id)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Hold blocks for the next `num_tokens` known tokens; False changes nothing."""
        return self._kv.allocate(sequence, sequence.num_computed_tokens + num_tokens)

    def hold(self, items: Iterable[ScheduledSequence]) -> bool:
        """Hold blocks for all these shares of a step that is planned ahead; False changes nothing."""
        items = tuple(items)
        missing = (self._kv.num_blocks_for(item.end) - len(item.sequence.block_table) for item in items)
        if sum(max(0, count) for count in missing) > self._kv.num_free_blocks:
            return False
        return all(self._kv.allocate(item.sequence, item.end) for item in items)

    def with_draft(self, item: ScheduledSequence, drafts: Mapping[int, tuple[int, ...]]) -> ScheduledSequence:
        """`item` with its draft, if it draws, as far as there is room without taking anyone else's; see with_drafts.

        The blocks are given back with the next `advance`, so that nobody is preempted for a guess.
        """
        draft = drafts.get(item.sequence.sequence_id, ())
        if not draft or not item.samples or item.sequence.status is not SequenceStatus.RUNNING:
            return item
        return replace(item, draft_token_ids=draft[: self._grow_for_drafts(item.sequence, len(draft))])

    def least_urgent(self) -> Sequence:
        """Whom to preempt when blocks run out."""
        return max(self._running.values(), key=lambda sequence: standing(sequence, self._config.ageing_seconds))

    def take_stopped(self) -> tuple[int, ...]:
        """Ids of the sequences that left since the last call."""
        stopped = tuple(self._stopped)
        self._stopped.clear()
        return stopped

    def _grow_for_drafts(self, sequence: Sequence, num_drafts: int) -> int:
        """Hold blocks for drafts behind all known tokens, as many as find room: how many."""
        room = self._kv.room_for(sequence) - len(sequence.token_ids)
        # The last token that may be drawn is never computed.
        most = sequence.num_prompt_tokens + sequence.request.sampling.max_tokens - 1 - len(sequence.token_ids)
        num_drafts = max(0, min(num_drafts, room, most))
        held = self._kv.allocate(sequence, len(sequence.token_ids) + num_drafts)
        assert held, "room_for counted blocks that are not there"
        return num_drafts
