"""Planning ahead: which steps can be decided while the one before them runs, so that a device need not wait for the host.

Of most sequences no more has to be known of the step that runs, the one *in flight*, than that each draws one token and goes
on: then it is known where that token will stand, which blocks it needs and which number of chance the token behind it is
drawn with. Its value is left to the device. What holds:

- Planning ahead advances no sequence. It takes blocks, ends who is overdue and starts who waits, as any plan does. So a plan made
  ahead may be dropped at any time, and the next one is made as if it had not been.
- A share planned ahead is the one that `schedule` would give after `update`, of a sequence that goes on. Who ends meanwhile is
  left out of the `update` of the plan made ahead, as ever; the token computed too many lies behind all that the sequence
  computed, where nobody finds it: blocks are published by `advance` alone, full ones of known tokens.
- Who will have ended by its number of tokens is not planned for.
- Nobody is preempted for a plan ahead, and drafts and guides, which are made of known tokens, have no place in one.
- Steps run in the order in which they were planned, and are launched as soon as they are. So a block that was given back is written
  by whoever gets it after the step in flight wrote to it, and copies into it begin behind that step (executors/offload).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from trierarch.python_backend.request import Request
from trierarch.python_backend.scheduling.plan import Plan, ScheduledSequence
from trierarch.python_backend.scheduling.step import Step
from trierarch.python_backend.sequence import Sequence

Guesses = Callable[[Request], bool]
"""Whether anybody may guess for a request's sequences, who would have to know their tokens."""


def may_launch(plan: Plan, guesses: Guesses) -> bool:
    """Whether a plan's tokens can be drawn without telling the host, so that a step may be planned behind it."""
    return bool(plan.scheduled) and all(is_blind(item, guesses) for item in plan.scheduled)


def is_blind(item: ScheduledSequence, guesses: Guesses) -> bool:
    """Whether nobody on the host has to know a sequence's last token for this share of a step, nor anything of its logits."""
    request = item.sequence.request
    sampling = request.sampling
    if sampling.tells_prompt or item.draft_token_ids or item.masks:
        return False
    if not item.samples:
        return True
    num_output_tokens = item.end - item.sequence.num_prompt_tokens
    return not (
        sampling.has_penalties
        or sampling.bad_words
        or (sampling.stop_words and num_output_tokens < sampling.min_tokens)
        or sampling.guide is not None
        or sampling.logprobs is not None
        or sampling.return_generation_logits
        or sampling.edited_logprobs
        or guesses(request)
    )


def give_behind(flight: Plan, running: Iterable[Sequence], step: Step, guesses: Guesses) -> bool:
    """Give out `step` to those that run, in their order, as they will stand once `flight` has; False where one is not blind."""
    in_flight = {item.sequence.sequence_id: item for item in flight.scheduled}
    for sequence in running:
        if not step.num_tokens_left:
            break
        item = in_flight.get(sequence.sequence_id)
        start = sequence.num_computed_tokens if item is None else item.end
        num_known = sequence.num_tokens + (item is not None and item.samples)
        if num_known - sequence.num_prompt_tokens >= sequence.request.sampling.max_tokens:
            continue
        num_tokens = min(num_known - start, step.num_tokens_left)
        share = ScheduledSequence.of(sequence, start, num_tokens, num_known)
        if not is_blind(share, guesses):
            return False
        step.give(share)
    return True
