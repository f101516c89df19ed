"""HeadDrafter: a head that reads the target's hidden states and guesses on from them.

Its keys and values lie in the target's blocks, as if it were one more layer (docs/decisions/0006): position p of a
sequence has its slot in the block that has the target's, so prefix hits, preemption, chunks and siblings need no
bookkeeping here. Row p pairs the hidden state of position p with the token at p + 1, so that the row of the last known
token waits until a token is drawn.

It follows every step of the target, also where nobody asks for guesses and where a sequence still computes its prompt. A
hidden state is gone when the step is over, and a block may be found in the prefix cache by whoever comes next: what is not
written now is never written.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from trierarch.builder.manifest import DrafterKind, EngineManifest, Head
from trierarch.python_backend.executors.following import StepRows
from trierarch.python_backend.executors.runner import LeadRunner
from trierarch.python_backend.scheduling.plan import ScheduledSequence, SequenceOutput
from trierarch.python_backend.sequence import Sequence
from trierarch.python_backend.speculation.drafter import NO_DRAFT, Ask, Draft
from trierarch.python_backend.speculation.step_cost import StepCost

if TYPE_CHECKING:
    import torch

A = TypeVar("A", bound=Any)
"""An array of rows, and one such row."""


class HeadModel(Protocol[A]):
    """Computes rows of a head. A row's token is the one after its position, so rows come as `draft_token_ids`."""

    @property
    def kv_arrays(self) -> tuple[Any, ...]:
        """All that its share of a block stands in; the third axis is the block's number."""
        ...

    def fuse(self, tapped: Any, rows: Rows[int]) -> A:
        """What some rows of `StepRows.tapped` are to the head: (n, hidden)."""
        ...

    def run(self, items: Rows[ScheduledSequence], hidden: A) -> list[A]:
        """Compute the rows of `items`, storing their keys and values; of each item's last row, the output.

        hidden: (n, hidden), one row for each of the items' draft tokens, item after item: what `fuse` gave, or the output
        of the row before.
        """
        ...

    def guess(self, outputs: Rows[A]) -> list[int]:
        """The target's id of the likeliest token after each output."""
        ...

    def stack(self, outputs: Rows[A]) -> A:
        """(n, hidden)."""
        ...


@dataclass(frozen=True, slots=True)
class _Place(Generic[A]):
    """How far the head has come with a sequence."""

    num_tokens: int
    """Known tokens, all of which its rows have seen."""
    output: A


@dataclass(slots=True, eq=False)
class _Guessing(Generic[A]):
    """A guess in the making."""

    ask: Ask
    sequence: Sequence
    """The asked one's, over blocks that reach as far as the guess."""
    output: A
    drafted: list[int] = field(default_factory=list)


class HeadDrafter(Generic[A]):
    """Implements ModelDrafter and Follower."""

    def __init__(
        self, kind: DrafterKind, model: HeadModel[A], num_blocks: int, block_size: int, end_ids: tuple[int, ...]
    ) -> None:
        """The model has the target's `num_blocks`, and behind them as many as `num_scratch_blocks` says."""
        self._kind = kind
        self._model: HeadModel[A] | None = model
        self._first_scratch_block = num_blocks
        self._block_size = block_size
        self._end_ids = end_ids
        self._places: dict[int, _Place[A]] = {}  # sequence_id -> place
        self._cost = StepCost()

    @property
    def kind(self) -> DrafterKind:
        """See Drafter.kind."""
        return self._kind

    @property
    def kv_arrays(self) -> tuple[Any, ...]:
        """See HeadModel.kv_arrays."""
        assert self._model is not None, "the drafter is closed"
        return self._model.kv_arrays

    def follow(self, step: StepRows[Any], outputs: Mapping[int, SequenceOutput]) -> None:
        """See Follower.follow."""
        assert self._model is not None, "the drafter is closed"
        items: list[ScheduledSequence] = []
        rows: list[int] = []
        for item, first_row in zip(step.items, step.first_rows, strict=True):
            drawn = outputs[item.sequence.sequence_id].token_ids
            known = item.sequence.token_ids[item.start + 1 : item.start + 1 + item.num_tokens]
            if following := (*known, *drawn):
                items.append(replace(item, num_tokens=0, draft_token_ids=following))
                rows += range(first_row, first_row + len(following))
        if not items:
            return
        hidden = self._model.fuse(step.tapped, rows)
        for item, output in zip(items, self._model.run(items, hidden), strict=True):
            self._places[item.sequence.sequence_id] = _Place(item.start + len(item.draft_token_ids) + 1, output)

    def can_guess(self, sequence: Sequence) -> bool:
        """See ModelDrafter.can_guess: not before its first token is drawn, nor where following it failed."""
        place = self._places.get(sequence.sequence_id)
        return place is not None and place.num_tokens == sequence.num_tokens

    def propose(self, asks: Rows[Ask]) -> list[Draft]:
        """See Drafter.propose. A sequence that it cannot guess for gets no draft."""
        assert self._model is not None, "the drafter is closed"
        scratch = count(self._first_scratch_block)
        started = [self._start(ask, scratch) for ask in asks]
        guessing = [one for one in started if one is not None]
        while guessing:
            began = time.perf_counter()
            for one, token in zip(guessing, self._model.guess([one.output for one in guessing]), strict=True):
                one.drafted.append(token)
            num_drawn = len(guessing)
            guessing = [one for one in guessing if self._goes_on(one)]
            if guessing:
                hidden = self._model.stack([one.output for one in guessing])
                for one, output in zip(guessing, self._model.run([_row(one) for one in guessing], hidden), strict=True):
                    one.output = output
            self._cost.observe(num_drawn, num_drawn, time.perf_counter() - began)
        return [NO_DRAFT if one is None else Draft(tuple(one.drafted)) for one in started]

    def seconds(self, asks: Rows[Ask], num_tokens: int) -> float:
        """See ModelDrafter.seconds. Following is part of the target's steps, be there guesses or not."""
        return num_tokens * self._cost.seconds(len(asks), len(asks))

    def forget(self, sequence_ids: Iterable[int]) -> None:
        """See Drafter.forget."""
        for sequence_id in sequence_ids:
            self._places.pop(sequence_id, None)

    def close(self) -> None:
        """See Drafter.close."""
        self._places.clear()
        self._model = None

    def _start(self, ask: Ask, scratch: Iterator[int]) -> _Guessing[A] | None:
        sequence = ask.sequence
        if not self.can_guess(sequence):
            return None
        # Rows are at the positions of all guesses but the last, from that of the last known token on. Slots of the
        # sequence's own last block may be written: they are written anew when it is known what belongs there.
        num_blocks = -(-(sequence.num_tokens + ask.max_tokens - 1) // self._block_size)
        own = sequence.block_table[:num_blocks]
        table = [*own, *islice(scratch, num_blocks - len(own))]
        return _Guessing(ask, replace(sequence, block_table=table), self._places[sequence.sequence_id].output)

    def _goes_on(self, one: _Guessing[A]) -> bool:
        ends = one.sequence.request.sampling.end_ids
        is_end = one.drafted[-1] in (self._end_ids if ends is None else ends)
        return len(one.drafted) < one.ask.max_tokens and not is_end


def num_scratch_blocks(max_batch_size: int, max_draft_tokens: int, block_size: int) -> int:
    """Blocks that guesses may need beyond those that their sequences hold."""
    return max_batch_size * -(-max_draft_tokens // block_size)


def _row(one: _Guessing[Any]) -> ScheduledSequence:
    """The row of the last guess, which stands one position before it."""
    start = one.sequence.num_tokens + len(one.drafted) - 2
    return ScheduledSequence(one.sequence, start, 0, (one.drafted[-1],))


def open_head(
    folder: Path, manifest: EngineManifest, head: Head, runner: LeadRunner, max_draft_tokens: int
) -> HeadDrafter[torch.Tensor]:
    """Load the head in `folder` where its target computes, and let it follow `runner`, which was opened with its taps.

    Raises:
        EngineError: the weights are missing, corrupt or not what the manifest says.
        ResourceError: the machine has no room for the weights or the keys and values.
    """
    import torch

    from trierarch.python_backend.executors.torch.device import prepare_cpu
    from trierarch.python_backend.executors.torch.head_model import TorchHead

    device = torch.device(runner.device)
    if device.type == "cpu":
        prepare_cpu()
    limits, block_size = manifest.limits, manifest.kv_cache.block_size
    num_scratch = num_scratch_blocks(limits.max_batch_size, max_draft_tokens, block_size)
    model = TorchHead(folder, manifest, runner.num_blocks + num_scratch, device)
    drafter = HeadDrafter(head.kind, model, runner.num_blocks, block_size, manifest.tokens.eos)
    runner.lead(drafter)
    return drafter
