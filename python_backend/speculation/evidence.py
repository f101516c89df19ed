"""Evidence: how firm the ground of a guess is that goes by equal words."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

_OWN_FROM: Final = (1, 2, 2, 3, 5, 9, 33)
"""Tokens matched in the sequence itself that make evidence 1, 2, ..."""
_OTHER_FROM: Final = (1, 2, 4, 6, 9, 17)
"""Likewise in another sequence, which has to match longer to be right as often."""
_LEAST_SHARE: Final = 0.6


def evidence_of(length: int, *, is_own: bool, share: float = 1.0) -> int:
    """In [0, MAX_EVIDENCE], monotone in each argument; drawn up from the acceptance measured (docs/log.md, 2026-11-25).

    Args:
        length: tokens matched.
        is_own: whether in the sequence itself.
        share: of the occurrences, those that went on with the first token guessed. Where they disagree the guess is
            mostly wrong however long the match: that is 0, and nothing else is.
    """
    return 0 if share < _LEAST_SHARE else bisect_right(_OWN_FROM if is_own else _OTHER_FROM, length)
