"""The plan of one step and what comes back from running it: the seam between deciding and computing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trierarch.python_backend.errors import ServingError
from trierarch.python_backend.request import TokenLogprob
from trierarch.python_backend.sequence import Sequence, SequenceStatus

if TYPE_CHECKING:
    from trierarch.python_backend.request import Logits


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """One sequence's share of a step: tokens [start, start + num_tokens) are computed.

    There is no prefill and no decode: `num_tokens` is 1 for a sequence that has caught up and more for one that has
    not. Blocks for all of them (and for the drafts) are in the block table before the step runs.
    """

    sequence: Sequence
    start: int
    """Position of the first token computed: the sequence's num_computed_tokens when the plan was made."""
    num_tokens: int
    """Known tokens computed, at least 1. Drafts come on top."""
    draft_token_ids: tuple[int, ...] = ()
    """Guessed tokens computed after the known ones and verified in the same step."""
    samples: bool = False
    """Whether the known tokens end here, so that the step draws the next one. What a step in flight draws counts as known."""
    masks: tuple[bytes, ...] = ()
    """What its guide allows behind the known tokens and behind each draft, as Context.allowed; none where it has none."""

    @classmethod
    def of(cls, sequence: Sequence, start: int, num_tokens: int, num_known: int | None = None) -> ScheduledSequence:
        """Without drafts. num_known: of the sequence's tokens, that in flight included; None is all that it knows."""
        num_known = sequence.num_tokens if num_known is None else num_known
        return cls(sequence, start, num_tokens, samples=start + num_tokens == num_known)

    @property
    def end(self) -> int:
        """Position behind the last known token computed."""
        return self.start + self.num_tokens

    @property
    def is_late(self) -> bool:
        """Whether the last known token computed is still being drawn, by the step before: only the device may know it."""
        return self.num_tokens > 0 and self.end > self.sequence.num_tokens

    @property
    def num_prompt_tokens(self) -> int:
        """Of the known tokens computed, those of the prompt."""
        return max(0, min(self.num_tokens, self.sequence.num_prompt_tokens - self.start))


@dataclass(frozen=True, slots=True)
class Plan:
    """What one step computes. `scheduled` may be empty (nothing to run, but sequences have finished)."""

    scheduled: tuple[ScheduledSequence, ...]
    finished_sequence_ids: tuple[int, ...] = ()
    """Ended or preempted since the last plan: a runner drops what it keeps for them."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed by the step, drafts included."""
        return sum(item.num_tokens + len(item.draft_token_ids) for item in self.scheduled)

    def of_the_running(self) -> Plan:
        """What is left of it without those that have ended since it was made."""
        return replace(
            self, scheduled=tuple(one for one in self.scheduled if one.sequence.status is SequenceStatus.RUNNING)
        )

    @property
    def num_requests(self) -> int:
        """Requests with a share in the step."""
        return len({item.sequence.request.request_id for item in self.scheduled})

    @property
    def num_context_requests(self) -> int:
        """Requests whose prompt is computed, or a part of it."""
        return len({item.sequence.request.request_id for item in self.scheduled if item.num_prompt_tokens})

    @property
    def num_context_tokens(self) -> int:
        """Prompt tokens computed."""
        return sum(item.num_prompt_tokens for item in self.scheduled)


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """What a step drew for one sequence."""

    token_ids: tuple[int, ...] = ()
    """Empty unless the sequence `samples`; then accepted drafts, if any, and one token more."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each of `token_ids`, where asked."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Where asked: for prompt tokens start + 1 and on, as far as the step's logits reach."""
    context_logits: tuple[Logits, ...] = ()
    """Where asked: those behind prompt tokens start and on, as far as the step goes."""
    generation_logits: tuple[Logits, ...] | None = None
    """Those that each of `token_ids` was drawn from, where asked."""
    pooled: Logits | None = None
    """Where asked: (hidden), what the step's prompt tokens add to the embedding; the sum over the prompt is all of it."""
    error: ServingError | None = None
    """Why nothing could be drawn for this sequence; it must end with FinishReason.ERROR, the others go on."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a runner returns for a plan."""

    outputs: dict[int, SequenceOutput]
    """sequence_id -> what was drawn, for every scheduled sequence."""
