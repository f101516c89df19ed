"""LiveText: prompt and output of a sequence that is being written, indexed as it grows."""

from __future__ import annotations

from array import array
from typing import Final

from trierarch.python_backend.sequence import Sequence
from trierarch.python_backend.speculation.suffix_index import MAX_DEPTH, Match, SuffixIndex
from trierarch.python_backend.speculation.tenants import Tenant

GRAMS: Final = (8, 2, 1)
GUESSED_PER_MATCHED: Final = 4
"""Tokens guessed for each token matched at most: SuffixDecoding's alpha."""
_MAX_HEADS: Final = 1 << 16


class LiveText:
    """What a drafter keeps of one sequence. Costs some 20 bytes a token, and 12 for each head."""

    def __init__(self, sequence: Sequence, tenant: Tenant) -> None:
        """Reads the tokens that `sequence` has now."""
        self.sequence = sequence
        self.tenant = tenant
        longest = sequence.num_prompt_tokens + sequence.request.sampling.max_tokens
        self.index = SuffixIndex(GRAMS, 1 << min(_MAX_HEADS, longest).bit_length())
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

    def find(self, tail: array[int]) -> Match:
        """Where `tail` stood before."""
        return self.index.find_again(tail)

    def follow(self, match: Match, limit: int, least: float = 0.0) -> tuple[list[int], float]:
        """`SuffixIndex.follow`, but a text that has gone round in a loop goes on doing so."""
        stored, share = self.index.follow(match, limit, least)
        num_left = self.num_tokens - match.ends[0]
        if len(match.ends) == 1 and num_left == len(stored) <= match.length:
            stored = (stored * -(-limit // num_left))[:limit]
        return stored, share
