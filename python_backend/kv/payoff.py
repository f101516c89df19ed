"""Payoff: whether bringing a block back takes less time than computing it again."""

from __future__ import annotations

from typing import Final, Protocol

from trierarch.python_backend.kv.copies import Tier

_WEIGHT: Final = 0.2
"""Of the latest measurement in a moving average."""
_PROBE_EVERY: Final = 64
"""One in so many recalls that do not pay is made all the same, since that may have changed."""


class Payoff(Protocol):
    """Says what is worth the copy, and hears what copies and steps took."""

    def pays(self, tier: Tier) -> bool:
        """Whether to bring blocks back from a tier; asked once for each recall."""
        ...

    def is_slow(self, tier: Tier) -> bool:
        """Whether `pays` would say no, but for the sake of measuring."""
        ...

    def observe_copies(self, tier: Tier, num_blocks: int, seconds: float) -> None:
        """So many blocks came back in so many seconds."""
        ...

    def observe_step(self, num_tokens: int, seconds: float) -> None:
        """A step computed so many tokens, most of them of prompts."""
        ...


class MeasuredPayoff:
    """Implements Payoff with moving averages. What was never measured pays.

    Only steps of a block's tokens or more are counted: of smaller ones most of the time is that of any step.
    """

    def __init__(self, block_size: int) -> None:
        """block_size: tokens of a block."""
        self._block_size = block_size
        self._compute_seconds: float | None = None  # a block
        self._copy_seconds: dict[Tier, float] = {}  # a block
        self._num_refused = 0

    def pays(self, tier: Tier) -> bool:
        """See Payoff.pays."""
        if not self.is_slow(tier):
            return True
        self._num_refused += 1
        return self._num_refused % _PROBE_EVERY == 0

    def is_slow(self, tier: Tier) -> bool:
        """See Payoff.is_slow."""
        copy = self._copy_seconds.get(tier)
        return copy is not None and self._compute_seconds is not None and copy >= self._compute_seconds

    def observe_copies(self, tier: Tier, num_blocks: int, seconds: float) -> None:
        """See Payoff.observe_copies."""
        self._copy_seconds[tier] = _average(self._copy_seconds.get(tier), seconds / num_blocks)

    def observe_step(self, num_tokens: int, seconds: float) -> None:
        """See Payoff.observe_step."""
        if num_tokens >= self._block_size:
            self._compute_seconds = _average(self._compute_seconds, seconds / num_tokens * self._block_size)


def _average(so_far: float | None, latest: float) -> float:
    return latest if so_far is None else so_far + _WEIGHT * (latest - so_far)
