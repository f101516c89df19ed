"""The drafter protocol: whoever guesses the tokens that follow a sequence."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Ask:
    """One sequence to draft for, all of whose known tokens count as context."""

    sequence: Sequence
    max_tokens: int
    """At least 1."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed tokens in order: each is right only if all before it are."""

    token_ids: tuple[int, ...]
    """At most as many as asked for; none where there is nothing to go by."""
    evidence: int = 0
    """How firm the ground is, in [0, MAX_EVIDENCE]: acceptance is learnt for each value by itself."""


MAX_EVIDENCE = 7
NO_DRAFT = Draft(())


class Drafter(Protocol):
    """Guesses. It may be wrong as often as it likes: what it says is verified, so it can cost speed and nothing else.

    It only reads sequences, and keeps what it needs by `sequence_id`. Everything kept beyond a sequence's life is kept
    by (adapter, cache_salt) and bounded in bytes. One thread calls it.
    """

    @property
    def kind(self) -> DrafterKind:
        """Which it is."""
        ...

    def propose(self, asks: Rows[Ask]) -> list[Draft]:
        """One draft for each ask."""
        ...

    def forget(self, sequence_ids: Iterable[int]) -> None:
        """These ended or were preempted; a preempted one may come back. Ids that were never asked about are fine."""
        ...

    def close(self) -> None:
        """Free what it holds. Idempotent."""
        ...


class ModelDrafter(Drafter, Protocol):
    """A drafter that computes: its guesses are better and cost time, so it is asked only where they pay."""

    def can_guess(self, sequence: Sequence) -> bool:
        """Whether it knows enough of a sequence to guess for it now. It must not raise."""
        ...

    def seconds(self, asks: Rows[Ask], num_tokens: int) -> float:
        """What guessing `num_tokens` for each of `asks` is expected to take, catching up with them included.

        0 while nobody knows.
        """
        ...
