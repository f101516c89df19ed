"""SuffixDrafter: what mostly followed the same words, in this sequence or in its tenant's earlier answers.

After SuffixDecoding (arXiv 2411.04975), over hash chains instead of suffix trees: counts are those of the latest
occurrences, which takes a fixed time, and forgetting the oldest answer costs no more than its length.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from typing import Final

from trierarch.builder.manifest import DrafterKind
from trierarch.python_backend.request import FinishReason
from trierarch.python_backend.sequence import Sequence, SequenceStatus
from trierarch.python_backend.speculation.drafter import NO_DRAFT, Ask, Draft
from trierarch.python_backend.speculation.evidence import evidence_of
from trierarch.python_backend.speculation.history import History
from trierarch.python_backend.speculation.live_text import GUESSED_PER_MATCHED, LiveTexts
from trierarch.python_backend.speculation.suffix_index import MAX_DEPTH, NO_MATCH
from trierarch.python_backend.speculation.tenants import token_ids_of

LEAST_PROBABILITY: Final = 0.3
"""A draft ends before its estimated probability falls below this."""


class SuffixDrafter:
    """Drafts from the longer of two matches, in the sequence itself or in its tenant's history. Implements Drafter."""

    kind = DrafterKind.SUFFIX

    def __init__(self, history_bytes: int, texts: LiveTexts | None = None) -> None:
        """Keeps at most `history_bytes` of finished sequences; 0 keeps none. texts: shared with others; None has its own."""
        self._texts = LiveTexts() if texts is None else texts
        self._texts.join()
        self._asked = set[int]()  # of live sequences: who named other drafters is not remembered by this one
        self.history = History(history_bytes, self._texts.tenants)

    def propose(self, asks: Rows[Ask]) -> list[Draft]:
        """One draft for each ask."""
        return [self._propose(ask) for ask in asks]

    def _propose(self, ask: Ask) -> Draft:
        text = self._texts.of(ask.sequence)
        self._asked.add(ask.sequence.sequence_id)
        own = text.match()
        earlier = self.history.index.find(text.tail(), beyond=own.length) if own.length < MAX_DEPTH else NO_MATCH
        is_own = not earlier.length
        source, match = (text, own) if is_own else (self.history.index, earlier)
        if not match.length:
            return NO_DRAFT
        limit = min(ask.max_tokens, GUESSED_PER_MATCHED * match.length)
        stored, share = source.follow(match, limit, LEAST_PROBABILITY)
        if not stored:
            return NO_DRAFT
        return Draft(token_ids_of(stored), evidence_of(match.length, is_own=is_own, share=share))

    def forget(self, sequence_ids: Iterable[int]) -> None:
        """Drop what is kept of these. Of those that came to an end of their own the answer goes into the history."""
        for sequence_id in sequence_ids:
            text = self._texts.get(sequence_id) if sequence_id in self._asked else None
            self._asked.discard(sequence_id)
            if text is not None and _is_whole(text.sequence):
                text.catch_up()
                # With the end of the prompt, so that the same question finds the answer's first tokens.
                start = 1 + max(0, text.sequence.num_prompt_tokens - MAX_DEPTH)
                self.history.add(text.tenant, text.index.tokens[start:])
            self._texts.forget(sequence_id)  # not before: the history holds the tenant by then

    def close(self) -> None:
        """Free what it holds."""
        self._texts.close()
        self._asked.clear()
        self.history = History(0, self._texts.tenants)


def _is_whole(sequence: Sequence) -> bool:
    ended_well = sequence.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    return sequence.status is SequenceStatus.FINISHED and ended_well
