"""SuffixIndex: where in a store of tokens the end of a text stood before, and what followed. Hash chains, as in LZ77."""

from __future__ import annotations

from array import array
from typing import Final, NamedTuple

MAX_DEPTH: Final = 64
"""Tokens that a match is followed back at most."""
MAX_OCCURRENCES: Final = 8
"""Latest links of a chain that are looked at: bounds the time of a query, and lets counts favour what is recent."""
_MAX_LINKS: Final = 8 * MAX_OCCURRENCES
"""Of a chain that are followed at most, strangers included."""
GAP: Final = -1
"""Stands for no token: no match and no continuation crosses it."""

_NOWHERE: Final = -1


class Match(NamedTuple):
    """The longest suffix that was found, and where."""

    length: int
    """Tokens, up to MAX_DEPTH; 0 where nothing matches."""
    ends: tuple[int, ...]
    """Slots of its last token, latest first, MAX_OCCURRENCES at most."""


NO_MATCH: Final = Match(0, ())


class SuffixIndex:
    """Slots of tokens; those that end the same n-gram form a chain from the latest to the earliest.

    Slots are appended, or overwritten in the order of writing (a ring). A link into a slot that was written anew is
    known by its age, for along a chain slots only get older. Hashes are never trusted: tokens are compared.
    """

    def __init__(self, grams: tuple[int, ...], num_heads: int, num_slots: int = 1) -> None:
        """All gaps.

        Args:
            grams: lengths of the n-grams whose occurrences are chained, longest first. A long one is rare enough to lead
                to the right place at once; the shortest is the least that counts as a match.
            num_heads: chains of each length, a power of two; fewer make chains longer, never wrong.
            num_slots: to be overwritten; 1 where all others are appended.
        """
        self.tokens = array("q", (GAP,)) * num_slots
        self.oldest = 0
        """The slot written longest ago; stays 0 where slots are appended."""
        self._mask = num_heads - 1
        self._chains = tuple(
            (size, array("i", (_NOWHERE,)) * num_slots, array("i", (_NOWHERE,)) * num_heads) for size in grams
        )

    def append(self, tokens: array[int]) -> None:
        """Go on with the text that the last slot ends."""
        start = len(self.tokens)
        self.tokens.extend(tokens)
        for _, previous, _ in self._chains:
            previous.extend(array("i", (_NOWHERE,)) * len(tokens))
        self._chain(start, len(self.tokens))

    def append_one(self, token: int) -> None:
        """`append` of one token: most steps bring no more."""
        slot, mask, tokens = len(self.tokens), self._mask, self.tokens
        tokens.append(token)
        for size, previous, heads in self._chains:
            if slot + 1 < size:
                previous.append(_NOWHERE)
                continue
            head = hash(tuple(tokens[-size:])) & mask
            previous.append(heads[head])
            heads[head] = slot

    def write(self, start: int, tokens: array[int]) -> None:
        """Overwrite the slots from `start` on with a text of its own, which begins with a gap."""
        end = start + len(tokens)
        self.tokens[start:end] = tokens
        self.oldest = end % len(self.tokens)
        self._chain(start, end)

    def erase(self, start: int, end: int) -> None:
        """Make gaps of the slots from `start` up to `end`."""
        self.tokens[start:end] = array("q", (GAP,)) * (end - start)

    def _chain(self, start: int, end: int) -> None:
        tokens, mask = self.tokens, self._mask
        for size, previous, heads in self._chains:
            first = max(0, start - size + 1)
            # The most shifted column is the shortest, so the last gram ends in the last slot.
            columns = [tokens[first + shift : end] for shift in range(size)]
            for slot, gram_hash in enumerate(map(hash, zip(*columns, strict=False)), first + size - 1):
                head = gram_hash & mask
                previous[slot] = heads[head]
                heads[head] = slot

    def find(self, tail: array[int], beyond: int = 0) -> Match:
        """Where the longest suffix of `tail`, at most MAX_DEPTH tokens and no gaps, ends.

        Longest among the latest MAX_OCCURRENCES of the longest n-gram that occurs at all. Suffixes of `beyond` tokens or
        fewer are of no interest.
        """
        mask = self._mask
        for size, previous, heads in self._chains:
            least = max(size, beyond + 1)
            if len(tail) >= least:
                slot = heads[hash(tuple(tail[-size:])) & mask]
                ends, length = self._longest(tail, size, least, previous, slot)
                if ends:
                    return Match(length, tuple(ends))
            if size <= beyond + 1:
                break  # where this n-gram does not occur, a match is shorter than it
        return NO_MATCH

    def find_again(self, tail: array[int]) -> Match:
        """The same for a `tail` that stands in the last slots, where it does not count."""
        for size, previous, _ in self._chains:
            if len(tail) >= size:
                ends, length = self._longest(tail, size, size, previous, previous[-1])
                if ends:
                    return Match(length, tuple(ends))
        return NO_MATCH

    def _longest(
        self, tail: array[int], size: int, least: int, previous: array[int], slot: int
    ) -> tuple[list[int], int]:
        """Ends, latest first, and length of the longest matches of `least` or more along the chain of n-grams of `size`.

        Strangers whose hash is the same do not count as occurrences: other tenants' texts take nobody's place.
        """
        tokens, oldest = self.tokens, self.oldest
        num_slots = age = len(tokens)
        depth, length, wanted, gram = len(tail), least, tail[-least:], tail[-size:]
        ends: list[int] = []
        num_left = MAX_OCCURRENCES
        for _ in range(_MAX_LINKS):
            # Ranks count from the slot written longest ago; a link that does not go down leads to what was written since.
            if slot == _NOWHERE or (rank := (slot - oldest) % num_slots) >= age:
                break
            age = rank
            if tokens[slot + 1 - length : slot + 1] == wanted:
                longer = length
                while longer < depth and tokens[slot - longer] == tail[-1 - longer]:
                    longer += 1
                if longer > length:
                    length, wanted = longer, tail[-longer:]
                    ends = []
                ends.append(slot)
                num_left -= 1
            elif tokens[slot + 1 - size : slot + 1] == gram:
                num_left -= 1
            if num_left == 0:
                break
            slot = previous[slot]
        return ends, length

    def follow(self, match: Match, limit: int, least: float) -> tuple[list[int], float]:
        """The most frequent continuation of a match, and the share of the occurrences that its first token has.

        At most `limit` tokens, as stored. Ends before the estimated probability, the product of the shares taken so
        far, falls below `least`. Of equally frequent tokens the one that was met last is taken.
        """
        tokens = self.tokens
        # Occurrences mostly go on alike, so equal continuations are taken together.
        num_ways: dict[bytes, int] = {}
        for end in match.ends:
            way = tokens[end + 1 : end + 1 + limit]
            if GAP in way:
                way = way[: way.index(GAP)]
            key = way.tobytes()
            num_ways[key] = num_ways.get(key, 0) + 1
        ways = [(array("q", key), count) for key, count in num_ways.items()]
        continuation: list[int] = []
        share = probability = 1.0
        while len(ways) > 1 and len(continuation) < limit:
            at = len(continuation)
            ways = [(way, count) for way, count in ways if len(way) > at]
            counts: dict[int, int] = {}
            for way, count in ways:
                counts[way[at]] = counts.get(way[at], 0) + count
            if not counts:
                break
            token = max(counts, key=counts.__getitem__)
            probability *= counts[token] / sum(counts.values())
            if probability < least:
                return continuation, share
            if not continuation:
                share = probability
            continuation.append(token)
            ways = [(way, count) for way, count in ways if way[at] == token]
        if ways:
            continuation += ways[0][0][len(continuation) :]
        return continuation, share
