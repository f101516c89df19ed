"""What a guide process is asked and what it says, pickled both ways."""

from __future__ import annotations

from dataclasses import dataclass

from trierarch.python_backend.request import Guide


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Where a process finds the bytes of tokens."""

    engine: str
    """The folder that has the tokenizer."""
    vocab_size: int
    """The model's, which may be larger."""
    max_bytes: int
    """Of data that the process may hold; beyond that compiling fails."""
    niceness: int = 0
    """How far the process steps back behind others."""


@dataclass(frozen=True, slots=True)
class MaskAsk:
    """What may one sequence draw next?"""

    serial: int
    """Unique, and in the reply again."""
    sequence_id: int
    guide: Guide
    end_ids: tuple[int, ...]
    num_accepted: int
    """Output tokens that the process has heard of; 0 starts anew."""
    token_ids: tuple[int, ...]
    """Those drawn since."""
    draft_token_ids: tuple[int, ...]
    draws_end: bool = False
    """Whether an end token is drawn where nothing else can follow, in place of the output being over."""


@dataclass(frozen=True, slots=True)
class MaskReply:
    """What an ask comes to."""

    serial: int
    masks: tuple[bytes, ...]
    """As Context.allowed: behind the known tokens, and behind each draft up to the first that leaves the grammar.

    None at all where the output is over, or a token was drawn that leaves the grammar, which is a bug of ours.
    """
    is_over: bool
    """The output is complete: no token can follow."""


@dataclass(frozen=True, slots=True)
class Asks:
    """A step's."""

    forgotten: tuple[int, ...]
    """Ids of sequences that ended or were preempted."""
    asks: tuple[MaskAsk, ...]
