"""LiveRequest: a request that has not ended, with its sequences; and how drawn tokens end a sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trierarch.python_backend.request import FinishReason, Request, TokenLogprob, Usage
from trierarch.python_backend.scheduling.plan import ScheduledSequence, SequenceOutput
from trierarch.python_backend.sequence import Sequence

if TYPE_CHECKING:
    from trierarch.python_backend.request import Logits


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A request between `add` and the last delta of its last sequence."""

    request: Request
    end_ids: frozenset[int]
    sequences: list[Sequence]
    """All n, by index."""
    held_back: list[Sequence]
    """Siblings of the first sequence that wait for it to compute the prompt they share."""
    num_unfinished: int
    is_queued: bool = True
    """Whether none of its sequences has started, so that it takes a place in the queue."""

    @classmethod
    def create(cls, request: Request, end_ids: tuple[int, ...], first_sequence_id: int) -> LiveRequest:
        """The request's n sequences, numbered from `first_sequence_id`; all but the first are held back.

        `end_ids` are the engine's, for a request that names none of its own.
        """
        known = (*request.prompt_token_ids, *request.answer_so_far)
        sequences = [
            Sequence(first_sequence_id + index, request, index, list(known)) for index in range(request.sampling.n)
        ]
        own = request.sampling.end_ids
        return cls(request, frozenset(end_ids if own is None else own), sequences, sequences[1:], len(sequences))

    def append_drawn(self, sequence: Sequence, token_ids: Iterable[int]) -> tuple[int, FinishReason | None]:
        """Append `token_ids` until one ends the sequence: how many were appended, and why it ended if it did.

        An end token is not appended; a stop word is. Neither ends anything before `min_tokens` tokens are out, or where
        the token only stands beside edited log-probs.
        """
        sampling = self.request.sampling
        num_output_tokens = sequence.num_output_tokens
        num_appended = 0
        for token in token_ids:
            may_stop = num_output_tokens >= sampling.min_tokens and not sampling.edited_logprobs
            if may_stop and token in self.end_ids:
                return num_appended, FinishReason.STOP
            sequence.token_ids.append(token)
            num_appended += 1
            num_output_tokens += 1
            if may_stop and sampling.stop_words and _ends_with_any(sequence, num_output_tokens, sampling.stop_words):
                return num_appended, FinishReason.STOP
            if num_output_tokens == sampling.max_tokens:
                return num_appended, FinishReason.LENGTH
        return num_appended, None

    def wants_prompt_told(self, sequence: Sequence) -> bool:
        """Whether log-probs or logits of the prompt are asked for and `sequence` is to bring them but has not yet."""
        return self.request.sampling.tells_prompt and sequence.index == 0 and sequence.num_output_tokens == 0

    def take_prompt_logprobs(
        self, item: ScheduledSequence, output: SequenceOutput
    ) -> tuple[TokenLogprob | None, ...] | None:
        """Keep the prompt log-probs of a step, but for those known from before a preemption; all, once it draws."""
        if self.request.sampling.prompt_logprobs is None or not self.wants_prompt_told(item.sequence):
            return None
        known = item.sequence.prompt_logprobs
        if not known:
            known.append(None)
        known.extend(output.prompt_logprobs[len(known) - (item.start + 1) :])
        return tuple(known) if item.samples else None

    def take_context_logits(self, item: ScheduledSequence, output: SequenceOutput) -> tuple[Logits, ...] | None:
        """The same for the logits behind the prompt's tokens."""
        if not self.request.sampling.return_context_logits or not self.wants_prompt_told(item.sequence):
            return None
        known = item.sequence.context_logits
        known.extend(output.context_logits[len(known) - item.start :])
        if not item.samples:
            return None
        told, item.sequence.context_logits = tuple(known), []
        return told

    def take_embedding(self, item: ScheduledSequence, output: SequenceOutput) -> Logits | None:
        """Add up what steps pooled of the prompt; all of it, once it draws.

        Raises:
            RuntimeError: the runner pooled nothing.
        """
        if not self.request.sampling.return_embedding or not self.wants_prompt_told(item.sequence):
            return None
        if output.pooled is None:
            raise RuntimeError(f"sequence {item.sequence.sequence_id}: the runner pooled nothing for {item}")
        # After a preemption the prompt is computed again from its first token.
        before = item.sequence.pooled if item.start else None
        item.sequence.pooled = output.pooled if before is None else before + output.pooled
        return item.sequence.pooled if item.samples else None

    def usage(self, sequence: Sequence) -> Usage:
        """What `sequence` has cost up to now."""
        return Usage(
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
            num_output_tokens=sequence.num_output_tokens,
            arrival_ns=round(self.request.arrival_time * 1e9),
            first_scheduled_ns=sequence.first_scheduled_ns,
            first_token_ns=sequence.first_token_ns,
            last_token_ns=sequence.last_token_ns,
            num_new_blocks=sequence.num_new_blocks,
            num_reused_blocks=sequence.num_reused_blocks,
            num_preemptions=sequence.num_preemptions,
            num_draft_tokens=sequence.num_draft_tokens,
            num_accepted_draft_tokens=sequence.num_accepted_draft_tokens,
        )


def _ends_with_any(sequence: Sequence, num_output_tokens: int, words: tuple[tuple[int, ...], ...]) -> bool:
    """Whether one of `words` stands at the end of the output; the prompt is no part of it."""
    known = sequence.token_ids
    return any(
        known[-1] == word[-1] and num_output_tokens >= len(word) and tuple(known[-len(word) :]) == word
        for word in words
    )
