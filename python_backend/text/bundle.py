"""Bundle: under load, tokens of a stream share a response.

A response costs some 0.13 ms whatever it carries (docs/log.md), on cores that the model computes with. So a step of many
streams does not send a response for each: a stream's tokens are held until it has several, its first and last excepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from trierarch.python_backend.request import TokenDelta, TokenLogprob

if TYPE_CHECKING:
    from trierarch.python_backend.request import Logits

RESPONSES_PER_STEP: Final = 16
"""About as many streamed responses as a step sends, however many streams there are."""


def tokens_per_response(num_streams: int) -> int:
    """How many steps' tokens a stream holds back while `num_streams` run; 1 sends each at once."""
    return max(1, -(-num_streams // RESPONSES_PER_STEP))


class Bundle:
    """The deltas of one sequence that have not been sent."""

    def __init__(self) -> None:
        self._held: list[TokenDelta] = []
        self._has_sent = False

    def add(self, delta: TokenDelta, most: int) -> TokenDelta | None:
        """What to send now: all that is held, once there are `most` deltas, or with the first or the last one."""
        self._held.append(delta)
        if self._has_sent and delta.finish_reason is None and len(self._held) < most:
            return None
        held, self._held = self._held, []
        self._has_sent = True
        return held[0] if len(held) == 1 else _merged(held)


def _merged(deltas: Sequence[TokenDelta]) -> TokenDelta:
    """One delta that says what `deltas` say; how the sequence ended stands in the last, its prompt's in the first."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    if any(delta.logprobs is not None for delta in deltas):
        logprobs = tuple(one for delta in deltas for one in delta.logprobs or ())
    generation_logits: tuple[Logits, ...] | None = None
    if any(delta.generation_logits is not None for delta in deltas):
        generation_logits = tuple(one for delta in deltas for one in delta.generation_logits or ())
    return replace(
        deltas[-1],
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=logprobs,
        prompt_logprobs=deltas[0].prompt_logprobs,
        context_logits=deltas[0].context_logits,
        embedding=deltas[0].embedding,
        generation_logits=generation_logits,
    )
