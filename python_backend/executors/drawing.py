"""Drawing: what a step computed becomes what it drew, whatever computed it and in whatever kind of array."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.following import Following, StepRows
from trierarch.python_backend.executors.sampling.sampler import Sampler, take_rows
from trierarch.python_backend.executors.verification import draw, with_harmless_drafts
from trierarch.python_backend.request import TokenLogprob
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence, SequenceOutput, StepOutput

A = TypeVar("A", bound=Any)
"""An array of rows that a slice or a list of row numbers chooses from."""

Adapters = Sequence[ActiveAdapter | None]
"""Of rows; None is the base model."""

_PROMPT_LOGITS_ROWS: Final = 64
"""Prompt log-probs are worked out this many tokens at a time: logits of a whole prompt would fill memory."""


class Drawing(Generic[A]):
    """Turns rows into tokens and log-probs. Logits are computed of no row that nobody asks for."""

    def __init__(self, logits: Callable[[A, Adapters], A], sampler: Sampler[A]) -> None:
        """logits: rows of `StepRows.hidden`, and the adapter of each → (n, vocab) float32."""
        self._logits = logits
        self._sampler = sampler
        self.following: Following[A] | None = None
        """Who is shown every step once its tokens are drawn."""

    def run(self, plan: Plan, compute: Callable[[Plan], StepRows[A]]) -> StepOutput:
        """What every sequence of the plan draws, drafts verified, and its prompt's log-probs where asked."""
        outputs = self._outputs(compute(plan))
        again = with_harmless_drafts(plan, outputs)
        return StepOutput(outputs | self._outputs(compute(again)) if again.scheduled else outputs)

    def _outputs(self, step: StepRows[A]) -> dict[int, SequenceOutput]:
        outputs = {item.sequence.sequence_id: SequenceOutput() for item in step.items}
        outputs |= self._sample(step)
        for item, first_row in zip(step.items, step.first_rows, strict=True):
            if logprobs := tuple(self._prompt_logprobs(item, step.hidden[first_row:])):
                sequence_id = item.sequence.sequence_id
                outputs[sequence_id] = replace(outputs[sequence_id], prompt_logprobs=logprobs)
        if self.following is not None:
            self.following.follow(step, outputs)
        return outputs

    def _sample(self, step: StepRows[A]) -> dict[int, SequenceOutput]:
        """Draw for every sequence whose known tokens end in this step."""
        items: list[ScheduledSequence] = []
        rows: list[int] = []
        adapters: list[ActiveAdapter | None] = []
        for item, first_row in zip(step.items, step.first_rows, strict=True):
            if item.samples:
                items.append(item)
                last_row, num_rows = first_row + item.num_tokens - 1, 1 + len(item.draft_token_ids)
                rows += range(last_row, last_row + num_rows)
                adapters += [item.sequence.adapter] * num_rows
        if not items:
            return {}
        logits = self._logits(step.hidden[rows], adapters)
        return draw(items, lambda chosen: take_rows(logits, chosen), self._sampler)

    def _prompt_logprobs(self, item: ScheduledSequence, hidden: A) -> Iterator[TokenLogprob]:
        """Where asked, for prompt tokens start + 1 and on. hidden: (>= num_tokens, hidden), from the item's first."""
        sequence = item.sequence
        num_top = sequence.request.sampling.prompt_logprobs
        if num_top is None or sequence.index > 0 or sequence.num_output_tokens > 0:
            return
        following = sequence.token_ids[item.start + 1 : item.start + 1 + item.num_tokens]
        for first in range(0, len(following), _PROMPT_LOGITS_ROWS):
            token_ids = following[first : first + _PROMPT_LOGITS_ROWS]
            logits = self._logits(hidden[first : first + len(token_ids)], [sequence.adapter] * len(token_ids))
            yield from self._sampler.prompt_logprobs(logits, token_ids, num_top)
