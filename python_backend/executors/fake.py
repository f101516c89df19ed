"""FakeRunner: a model whose output can be worked out by hand, for tests without torch and for trying the loop.

It keeps the token of every KV slot it was told to compute and draws

    next = (weight * sum(context tokens) + number of context tokens) mod vocab_size

where the context is read back *through the block table*. A block shared wrongly, freed too soon or never written
changes the sum, so whoever schedules on it finds out. Give two runners different weights to tell which one ran.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from trierarch.builder.adapter import AdapterTensors
from trierarch.python_backend.request import TokenLogprob
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence, SequenceOutput, StepOutput
from trierarch.python_backend.sequence import Sequence


def next_token(context: SequenceOf[int], weight: int, vocab_size: int) -> int:
    """The token the fake model draws after `context`."""
    return (weight * sum(context) + len(context)) % vocab_size


@dataclass(frozen=True, slots=True)
class FakeWeights:
    """An adapter's. Implements Arranged."""

    num_bytes: int
    shift: int


class FakeRunner:
    """A Runner over a dictionary of slots. Drafts are verified as a real runner does: accepted while they agree."""

    def __init__(self, num_blocks: int, block_size: int, vocab_size: int = 97, weight: int = 3) -> None:
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._weight = weight
        self._slots: dict[int, int] = {}  # slot -> token id
        self.num_steps = 0

    @property
    def num_blocks(self) -> int:
        """KV blocks the runner has room for."""
        return self._num_blocks

    def arrange(self, tensors: AdapterTensors) -> FakeWeights:
        """An adapter adds to every token a number that comes of its digest."""
        return FakeWeights(tensors.num_bytes, int(tensors.manifest.digest[:8], 16))

    def run(self, plan: Plan) -> StepOutput:
        """Write the plan's tokens into their slots and draw from what lies there."""
        self.num_steps += 1
        return StepOutput({item.sequence.sequence_id: self._run_one(item) for item in plan.scheduled})

    def close(self) -> None:
        """Forget every slot."""
        self._slots.clear()

    def _run_one(self, item: ScheduledSequence) -> SequenceOutput:
        sequence = item.sequence
        end = item.start + item.num_tokens
        tokens = [*sequence.token_ids[item.start : end], *item.draft_token_ids]
        for position, token in enumerate(tokens, start=item.start):
            self._slots[self._slot(sequence.block_table, position)] = token
        if not item.samples:
            return SequenceOutput()
        context = [self._slots[self._slot(sequence.block_table, position)] for position in range(end)]
        shift = _shift(sequence)
        drawn: list[int] = []
        for draft in (*item.draft_token_ids, None):
            token = (next_token([*context, *drawn], self._weight, self._vocab_size) + shift) % self._vocab_size
            drawn.append(token)
            if token != draft:
                break
        wants_logprobs = sequence.request.sampling.logprobs is not None
        logprobs = tuple(TokenLogprob(token, 0.0) for token in drawn) if wants_logprobs else None
        return SequenceOutput(tuple(drawn), logprobs)

    def _slot(self, block_table: list[int], position: int) -> int:
        block_id = block_table[position // self._block_size]
        if not 0 <= block_id < self._num_blocks:
            raise IndexError(f"block {block_id} is not one of the {self._num_blocks} blocks")
        return block_id * self._block_size + position % self._block_size


def _shift(sequence: Sequence) -> int:
    if sequence.adapter is None:
        return 0
    assert isinstance(sequence.adapter.weights, FakeWeights)
    return sequence.adapter.weights.shift
