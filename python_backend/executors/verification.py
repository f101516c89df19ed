"""Verification: what a step draws for each sequence, drafts considered. Imports no torch: any sampler will do.

A token is drawn from the model's own distribution at every place of a draft, just as if the draft were not there, and
the draft is accepted as far as it agrees with what was drawn. The first token that differs takes its place, and behind
a draft that agrees to its end one token more is drawn. What is drawn therefore never depends on what was guessed: greedy
answers are the same with any drafter and none, and so are sampled ones of one seed (docs/decisions/0005).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from trierarch.python_backend.request import TokenLogprob
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence, SequenceOutput
from trierarch.python_backend.sequence import Context, Continuation

Logits = TypeVar("Logits")
Logits_contra = TypeVar("Logits_contra", contravariant=True)


class RowSampler(Protocol[Logits_contra]):
    """Draws one token a row."""

    def sample(self, logits: Logits_contra, contexts: Rows[Context]) -> list[SequenceOutput]:
        """One output for each row of `logits` (n, vocab), drawn after contexts[i]: one token, or an error."""
        ...


@dataclass(slots=True)
class _Trial:
    """One sequence's draft in the course of verification."""

    item: ScheduledSequence
    first_row: int
    tokens: list[int]
    logprobs: list[TokenLogprob]
    output: SequenceOutput | None = None

    @property
    def num_places(self) -> int:
        """Where a token may be drawn; a guide says nothing of what lies behind its masks."""
        return len(self.item.masks) or 1 + len(self.item.draft_token_ids)

    def context(self, position: int) -> Context:
        """What the token behind `position` drafts is drawn after."""
        sequence, masks = self.item.sequence, self.item.masks
        if not position and not masks:
            return sequence
        return Continuation(sequence, self.item.draft_token_ids[:position], masks[position] if masks else None)

    def take(self, position: int, drawn: SequenceOutput) -> None:
        """Go one token on, or come to the end."""
        if drawn.error is not None:
            # What was drawn before is sound. If it is not empty the error will come again, with the next step.
            self.output = self._drawn() if self.tokens else drawn
            return
        self.tokens += drawn.token_ids
        self.logprobs += drawn.logprobs or ()
        if position + 1 == self.num_places or drawn.token_ids[0] != self.item.draft_token_ids[position]:
            self.output = self._drawn()

    def _drawn(self) -> SequenceOutput:
        wants_logprobs = self.item.sequence.request.sampling.logprobs is not None
        return SequenceOutput(tuple(self.tokens), tuple(self.logprobs) if wants_logprobs else None)


def draw(
    items: Rows[ScheduledSequence], take: Callable[[list[int]], Logits], sampler: RowSampler[Logits]
) -> dict[int, SequenceOutput]:
    """Draw for `items`, all of which sample: sequence_id -> accepted drafts and one token more, or an error.

    The logits have a row for each place where a token may be drawn: for each item in turn, one behind its known tokens
    and one behind each of its drafts. `take` gives those of some rows.
    """
    trials: list[_Trial] = []
    num_rows = 0
    for item in items:
        trials.append(_Trial(item, num_rows, [], []))
        num_rows += 1 + len(item.draft_token_ids)
    # Greedy places cost next to nothing, so all of a draft's go at once; the others one by one, as far as they get.
    places = [(trial, position) for trial in trials for position in range(trial.num_places if _is_greedy(trial) else 1)]
    while places:
        outputs = sampler.sample(
            take([trial.first_row + position for trial, position in places]),
            [trial.context(position) for trial, position in places],
        )
        for (trial, position), drawn in zip(places, outputs, strict=True):
            if trial.output is None:
                trial.take(position, drawn)
        places = [(trial, len(trial.tokens)) for trial in trials if trial.output is None]
    return {trial.item.sequence.sequence_id: trial.output for trial in trials if trial.output is not None}


def with_harmless_drafts(plan: Plan, outputs: Mapping[int, SequenceOutput]) -> Plan:
    """The sequences of `plan` that could not be drawn for with their drafts, with others in their place; to be run again.

    Attention multiplies what a token must not see by zero, and a draft may overflow: infinity times zero is NaN. What
    it left in the sequence's blocks would go on doing so until it is overwritten, so its places are filled with a token
    that the sequence has lived with, its last known one.
    """
    return Plan(
        tuple(
            replace(
                item,
                draft_token_ids=(item.sequence.token_ids[-1],) * len(item.draft_token_ids),
                masks=item.masks[:1],  # the others are of what was guessed
            )
            for item in plan.scheduled
            if item.draft_token_ids and outputs[item.sequence.sequence_id].error is not None
        )
    )


def _is_greedy(trial: _Trial) -> bool:
    return trial.item.sequence.request.sampling.is_greedy
