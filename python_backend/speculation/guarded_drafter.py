"""GuardedDrafter: a drafter that can do no harm."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from typing import Final, Generic, TypeVar

from trierarch.python_backend.speculation.drafter import MAX_EVIDENCE, NO_DRAFT, Ask, Draft, Drafter

logger = logging.getLogger(__name__)

D = TypeVar("D", bound=Drafter)

_LONGEST_REST: Final = 1 << 16
"""Calls that a drafter is spared at most after it failed."""


class GuardedDrafter(Generic[D]):
    """Asks a drafter and trusts nothing it says or does.

    One that raises guesses nothing in this call and is left alone for a while, twice as long each time. What it guesses
    is cut to what was asked for, and at the first token that the vocabulary lacks.
    """

    def __init__(self, drafter: D, vocab_size: int) -> None:
        self.drafter = drafter
        self.kind = drafter.kind
        self._vocab_size = vocab_size
        self._num_failures = 0
        self._rest = 0

    def propose(self, asks: Rows[Ask]) -> list[Draft]:
        """One draft for each of `asks`."""
        if self._rest:
            self._rest -= 1
            return [NO_DRAFT] * len(asks)
        try:
            drafts = self.drafter.propose(asks)
            return [self._cut(draft, ask) for draft, ask in zip(drafts, asks, strict=True)]
        except Exception:
            self._rest = min(_LONGEST_REST, 1 << self._num_failures)
            self._num_failures += 1
            logger.exception("drafter %s failed; it is not asked for the next %d steps", self.kind, self._rest)
            return [NO_DRAFT] * len(asks)

    def forget(self, sequence_ids: Iterable[int]) -> None:
        """See Drafter.forget."""
        try:
            self.drafter.forget(sequence_ids)
        except Exception:
            logger.exception("drafter %s failed to forget", self.kind)

    def close(self) -> None:
        """See Drafter.close."""
        try:
            self.drafter.close()
        except Exception:
            logger.exception("drafter %s failed to close", self.kind)

    def _cut(self, draft: Draft, ask: Ask) -> Draft:
        token_ids = draft.token_ids[: ask.max_tokens]
        num_valid = next((i for i, token in enumerate(token_ids) if not 0 <= token < self._vocab_size), len(token_ids))
        evidence = min(max(draft.evidence, 0), MAX_EVIDENCE)
        if num_valid == len(draft.token_ids) and evidence == draft.evidence:
            return draft
        return Draft(token_ids[:num_valid], evidence)
