"""Sequence: one stream of tokens being produced for a request, with its progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from trierarch.python_backend.adapters.active_adapter import ActiveAdapter
from trierarch.python_backend.request import FinishReason, Request, TokenLogprob

if TYPE_CHECKING:
    from trierarch.python_backend.request import Logits


class SequenceStatus(StrEnum):
    """Where a sequence stands with the scheduler."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    """Its blocks were taken back; it waits and is recomputed."""
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Progress of one of a request's `n` sequences. The scheduler owns it; a runner only reads it.

    Every count has one meaning: `token_ids` are wanted or already drawn, the first `num_computed_tokens` of them have
    their keys and values in the blocks of `block_table`.
    """

    sequence_id: int
    """Unique over the life of the executor."""
    request: Request
    index: int
    token_ids: list[int]
    """Prompt, then output."""
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    """Block ids in token order; token t lies in block_table[t // block_size] at t % block_size."""
    block_keys: list[bytes] = field(default_factory=list)
    """Prefix cache keys of the first full blocks of `token_ids`, as far as they were needed."""
    status: SequenceStatus = SequenceStatus.WAITING
    finish_reason: FinishReason | None = None
    adapter: ActiveAdapter | None = None
    """While it runs: its request's adapter; None is the base model."""
    blocked_ns: int | None = None
    """While it waits: when its adapter first found no place."""
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    """Filled as the prompt is computed, where asked; so `context_logits`."""
    context_logits: list[Logits] = field(default_factory=list)
    pooled: Logits | None = None
    """Of the prompt tokens computed so far, where asked."""
    num_cached_tokens: int = 0
    """Tokens whose KV was there when it first started: in the prefix cache, or in a sibling's blocks."""
    num_new_blocks: int = 0
    num_reused_blocks: int = 0
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    first_scheduled_ns: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known."""
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens the client sent."""
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """A copy of the tokens drawn so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def allowed(self) -> None:
        """See Context: what a guide allows is of a step, not of the sequence."""
        return None


class Context(Protocol):
    """What a next token is drawn after: a sequence as it stands, or as it would stand with drafts accepted."""

    @property
    def sequence_id(self) -> int: ...
    @property
    def request(self) -> Request: ...
    @property
    def index(self) -> int: ...
    @property
    def token_ids(self) -> list[int]:
        """Prompt, then output. Not to be changed."""
        ...

    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_output_tokens(self) -> int: ...
    @property
    def output_token_ids(self) -> list[int]: ...
    @property
    def allowed(self) -> bytes | None:
        """Tokens that its guide lets it draw next: bit t % 8 of byte t // 8, the lowest first. None is all."""
        ...


class _Ahead:
    """What a sequence and the same with more tokens have in common."""

    __slots__ = ("sequence",)

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence

    @property
    def sequence_id(self) -> int:
        """The sequence's."""
        return self.sequence.sequence_id

    @property
    def request(self) -> Request:
        """The sequence's."""
        return self.sequence.request

    @property
    def index(self) -> int:
        """The sequence's."""
        return self.sequence.index

    @property
    def num_prompt_tokens(self) -> int:
        """The sequence's."""
        return self.sequence.num_prompt_tokens


class Unheard(_Ahead):
    """A sequence as it will stand with one token more, which a device has drawn and nobody has heard of. Implements Context.

    Only what does not depend on that token can be asked.
    """

    __slots__ = ()

    @property
    def token_ids(self) -> list[int]:
        """Raises RuntimeError."""
        raise RuntimeError(f"the last token of sequence {self.sequence_id} is still on the device")

    @property
    def output_token_ids(self) -> list[int]:
        """Raises RuntimeError."""
        return self.token_ids

    @property
    def num_output_tokens(self) -> int:
        """Tokens drawn, that one included."""
        return self.sequence.num_output_tokens + 1

    @property
    def allowed(self) -> None:
        """Whatever it likes: no guide is waited for."""
        return None


class Continuation(_Ahead):
    """A sequence as it would stand with `draft_token_ids` accepted. Implements Context; the sequence stays as it is."""

    __slots__ = ("allowed", "draft_token_ids")

    def __init__(self, sequence: Sequence, draft_token_ids: tuple[int, ...], allowed: bytes | None = None) -> None:
        super().__init__(sequence)
        self.draft_token_ids = draft_token_ids
        self.allowed = allowed

    @property
    def token_ids(self) -> list[int]:
        """Prompt, output and drafts; where there are drafts, a list made anew."""
        known = self.sequence.token_ids
        return [*known, *self.draft_token_ids] if self.draft_token_ids else known

    @property
    def num_output_tokens(self) -> int:
        """Tokens drawn so far, drafts included."""
        return self.sequence.num_output_tokens + len(self.draft_token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        """A copy of the tokens drawn so far, drafts included."""
        return self.token_ids[self.num_prompt_tokens :]
