"""PromptLookupDrafter: what followed the same words earlier in the prompt or the answer."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows

from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.speculation.drafter import NO_DRAFT, Ask, Draft
from trierarch.python_backend.speculation.evidence import evidence_of
from trierarch.python_backend.speculation.live_text import GUESSED_PER_MATCHED, LiveTexts
from trierarch.python_backend.speculation.suffix_index import Match
from trierarch.python_backend.speculation.tenants import token_ids_of


class PromptLookupDrafter:
    """Goes on as the sequence did after the latest of the longest matches of its end.

    n-gram prompt lookup, by the longest n-gram that can be found. Implements Drafter.
    """

    kind = DrafterKind.PROMPT_LOOKUP

    def __init__(self, texts: LiveTexts | None = None) -> None:
        """texts: shared with other drafters; None has its own."""
        self._texts = LiveTexts() if texts is None else texts
        self._texts.join()

    def propose(self, asks: Rows[Ask]) -> list[Draft]:
        """One draft for each ask."""
        return [self._propose(ask) for ask in asks]

    def _propose(self, ask: Ask) -> Draft:
        text = self._texts.of(ask.sequence)
        match = text.match()
        if not match.length:
            return NO_DRAFT
        limit = min(ask.max_tokens, GUESSED_PER_MATCHED * match.length)
        stored, _ = text.follow(Match(match.length, match.ends[:1]), limit)
        return Draft(token_ids_of(stored), evidence_of(match.length, is_own=True))

    def forget(self, sequence_ids: Iterable[int]) -> None:
        """Drop what is kept of these."""
        for sequence_id in sequence_ids:
            self._texts.forget(sequence_id)

    def close(self) -> None:
        """Free what it holds."""
        self._texts.close()
