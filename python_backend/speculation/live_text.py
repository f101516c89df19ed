"""LiveText: prompt and output of a sequence that is being written, indexed as it grows; LiveTexts has those of all."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Final

from trierarch.python_backend.sequence import Sequence
from trierarch.python_backend.speculation.suffix_index import MAX_DEPTH, NO_MATCH, Match, SuffixIndex
from trierarch.python_backend.speculation.tenants import Tenant, Tenants

GRAMS: Final = (8, 2, 1)
GUESSED_PER_MATCHED: Final = 4
"""Tokens guessed for each token matched at most: SuffixDecoding's alpha."""
_MAX_HEADS: Final = 1 << 16


class LiveText:
    """What drafters keep of one sequence. Costs some 20 bytes a token, and 12 for each head."""

    def __init__(self, sequence: Sequence, tenant: Tenant) -> None:
        """Reads the tokens that `sequence` has now."""
        self.sequence = sequence
        self.tenant = tenant
        longest = sequence.num_prompt_tokens + sequence.request.sampling.max_tokens
        self.index = SuffixIndex(GRAMS, 1 << min(_MAX_HEADS, longest).bit_length())
        self._match, self._num_matched = NO_MATCH, 0
        self.catch_up()

    @property
    def num_tokens(self) -> int:
        """Tokens read."""
        return len(self.index.tokens) - 1

    def catch_up(self) -> None:
        """Read the tokens that came since."""
        new = self.sequence.token_ids[self.num_tokens :]
        if len(new) == 1:
            self.index.append_one(self.tenant.stored_one(new[0]))
        elif new:
            self.index.append(self.tenant.stored(new))

    def tail(self) -> array[int]:
        """The last tokens, as many as a match can have."""
        return self.index.tokens[max(1, len(self.index.tokens) - MAX_DEPTH) :]

    def match(self) -> Match:
        """Where its end stood before."""
        if self._num_matched != self.num_tokens:
            self._match, self._num_matched = self.index.find_again(self.tail()), self.num_tokens
        return self._match

    def follow(self, match: Match, limit: int, least: float = 0.0) -> tuple[list[int], float]:
        """`SuffixIndex.follow`, but a text that has gone round in a loop goes on doing so."""
        stored, share = self.index.follow(match, limit, least)
        num_left = self.num_tokens - match.ends[0]
        if len(match.ends) == 1 and num_left == len(stored) <= match.length:
            stored = (stored * -(-limit // num_left))[:limit]
        return stored, share


class LiveTexts:
    """The texts of sequences that drafters are asked about, each kept once for all of them."""

    def __init__(self) -> None:
        """None, and nobody who reads them."""
        self.tenants = Tenants()
        self._texts: dict[int, LiveText] = {}
        self._num_readers = 0
        self._num_forgot: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._texts)

    def join(self) -> None:
        """Somebody reads who will tell of each sequence that he forgets it, also if he never asked for it."""
        self._num_readers += 1

    def of(self, sequence: Sequence) -> LiveText:
        """What `sequence` says so far."""
        text = self._texts.get(sequence.sequence_id)
        if text is None:
            tenant = self.tenants.hold(sequence.request.adapter_digest, sequence.request.cache_salt)
            text = self._texts[sequence.sequence_id] = LiveText(sequence, tenant)
        else:
            text.catch_up()
        return text

    def get(self, sequence_id: int) -> LiveText | None:
        """As it was last read; None where nobody asked for it."""
        return self._texts.get(sequence_id)

    def forget(self, sequence_id: int) -> None:
        """One reader needs it no more; it goes when all have said so."""
        text = self._texts.get(sequence_id)
        if text is None:
            return
        self._num_forgot[sequence_id] += 1
        if self._num_forgot[sequence_id] >= self._num_readers:
            del self._texts[sequence_id], self._num_forgot[sequence_id]
            self.tenants.release(text.tenant)

    def close(self) -> None:
        """Drop all. Idempotent."""
        for text in self._texts.values():
            self.tenants.release(text.tenant)
        self._texts.clear()
        self._num_forgot.clear()
