"""Drawing: what a step computed becomes what it drew, whatever computed it and in whatever kind of array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

import numpy as np

from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.executors.following import Following, StepRows
from trierarch.python_backend.executors.pooling import Pooler
from trierarch.python_backend.executors.sampling.sampler import Sampler, take_rows
from trierarch.python_backend.executors.sampling.token_history import Floats
from trierarch.python_backend.executors.verification import draw, with_harmless_drafts
from trierarch.python_backend.request import TokenLogprob
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence, SequenceOutput, StepOutput

A = TypeVar("A", bound=Any)
"""An array of rows that a slice or a list of row numbers chooses from."""

Adapters = Sequence[ActiveAdapter | None]
"""Of rows; None is the base model."""

_PROMPT_LOGITS_ROWS: Final = 64
"""Of a prompt whose log-probs or logits are asked for, so many tokens are worked out at a time."""


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """Rows of a step that tokens are drawn from: of each of `items` in turn, all that has a place in it for one."""

    items: list[ScheduledSequence]
    rows: list[int]
    adapters: list[ActiveAdapter | None]
    """Of each row."""

    @classmethod
    def of(cls, step: StepRows[Any]) -> DrawnRows:
        """Those of every sequence whose known tokens end in the step."""
        found = cls([], [], [])
        for item, first_row in zip(step.items, step.first_rows, strict=True):
            if item.samples:
                found.items.append(item)
                last_row, num_rows = first_row + item.num_tokens - 1, 1 + len(item.draft_token_ids)
                found.rows.extend(range(last_row, last_row + num_rows))
                found.adapters.extend([item.sequence.adapter] * num_rows)
        return found


class Drawing(Generic[A]):
    """Turns rows into tokens and log-probs. Logits are computed of no row that nobody asks for."""

    def __init__(self, logits: Callable[[A, Adapters], A], sampler: Sampler[A], pooler: Pooler | None = None) -> None:
        """logits: rows of `StepRows.hidden`, and the adapter of each → (n, vocab) float32. pooler: of embeddings."""
        self._logits = logits
        self._sampler = sampler
        self._pooler = pooler
        self.following: Following[A] | None = None
        """Who is shown every step once its tokens are drawn."""

    def run(self, plan: Plan, compute: Callable[[Plan], StepRows[A]]) -> StepOutput:
        """What every sequence of the plan draws, drafts verified, with log-probs and logits where asked."""
        outputs = self._outputs(compute(plan))
        again = with_harmless_drafts(plan, outputs)
        return StepOutput(outputs | self._outputs(compute(again)) if again.scheduled else outputs)

    def _outputs(self, step: StepRows[A]) -> dict[int, SequenceOutput]:
        outputs = {item.sequence.sequence_id: SequenceOutput() for item in step.items}
        outputs |= self._sample(step)
        for item, first_row in zip(step.items, step.first_rows, strict=True):
            if _is_told(item):
                sequence_id = item.sequence.sequence_id
                outputs[sequence_id] = self._told(outputs[sequence_id], item, step.hidden[first_row:])
        if self.following is not None:
            self.following.follow(step, outputs)
        return outputs

    def _sample(self, step: StepRows[A]) -> dict[int, SequenceOutput]:
        """Draw for every sequence whose known tokens end in this step."""
        drawn = DrawnRows.of(step)
        if not drawn.items:
            return {}
        logits = self._logits(take_rows(step.hidden, drawn.rows), drawn.adapters)
        outputs = draw(drawn.items, lambda chosen: take_rows(logits, chosen), self._sampler)
        return outputs | self._with_logits(outputs, drawn.items, logits)

    def _with_logits(
        self, outputs: dict[int, SequenceOutput], items: Sequence[ScheduledSequence], logits: A
    ) -> dict[int, SequenceOutput]:
        """Those of `outputs` that are to have the logits that their tokens were drawn from, with these."""
        told: dict[int, SequenceOutput] = {}
        first_row = 0
        for item in items:
            output = outputs[item.sequence.sequence_id]
            if item.sequence.request.sampling.return_generation_logits and output.token_ids:
                rows = self._sampler.rows(logits[first_row : first_row + len(output.token_ids)])
                told[item.sequence.sequence_id] = replace(output, generation_logits=rows)
            first_row += 1 + len(item.draft_token_ids)
        return told

    def _told(self, output: SequenceOutput, item: ScheduledSequence, hidden: A) -> SequenceOutput:
        """The output with what is asked of the prompt: hidden (>= num_tokens, hidden), from its first."""
        sequence, sampling = item.sequence, item.sequence.request.sampling
        if sampling.return_embedding and self._pooler is not None:
            states = np.stack(self._sampler.rows(hidden[: item.num_tokens]))
            output = replace(output, pooled=self._pooler.pooled(states, item.samples))
        if sampling.prompt_logprobs is None and not sampling.return_context_logits:
            return output
        following = sequence.token_ids[item.start + 1 : item.start + 1 + item.num_tokens]
        logprobs: list[TokenLogprob] = []
        rows: list[Floats] = []
        for first in range(0, item.num_tokens, _PROMPT_LOGITS_ROWS):
            num_rows = min(_PROMPT_LOGITS_ROWS, item.num_tokens - first)
            token_ids = following[first : first + num_rows]
            if not sampling.return_context_logits:
                num_rows = len(token_ids)  # behind the last token there is none whose log-prob could be asked for
            logits = self._logits(hidden[first : first + num_rows], [sequence.adapter] * num_rows)
            if sampling.prompt_logprobs is not None:
                told = self._sampler.prompt_logprobs(logits[: len(token_ids)], token_ids, sampling.prompt_logprobs)
                logprobs += told
            if sampling.return_context_logits:
                rows += self._sampler.rows(logits)
        return replace(output, prompt_logprobs=tuple(logprobs), context_logits=tuple(rows))


def _is_told(item: ScheduledSequence) -> bool:
    sequence = item.sequence
    return sequence.request.sampling.tells_prompt and sequence.index == 0 and sequence.num_output_tokens == 0
