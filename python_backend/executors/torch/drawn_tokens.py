"""DrawnTokens: what a step drew, still on the device; LateTokens: what the step behind it makes of them there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from trierarch.python_backend.executors.torch.device import on_device
from trierarch.python_backend.scheduling.plan import ScheduledSequence


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """A step's. Each number is a token's, if only a wrong one where nothing could be drawn: it may be looked up."""

    token_ids: torch.Tensor  # (n) int64
    places: Mapping[int, int]
    """sequence_id -> where its token is."""


@dataclass(frozen=True, slots=True)
class LateTokens:
    """Tokens that the host did not know when it built a step."""

    rows: torch.Tensor  # (n) int64: of the step's tokens
    token_ids: torch.Tensor  # (n) int64

    @classmethod
    def of(
        cls, items: Sequence[ScheduledSequence], first_rows: Sequence[int], drawn: DrawnTokens | None
    ) -> LateTokens | None:
        """Of a step of `items`, whose first tokens are in `first_rows`, behind the one that drew `drawn`; None if there are none.

        Raises:
            RuntimeError: a token is late, and no step has drawn it.
        """
        late = [(item, first) for item, first in zip(items, first_rows, strict=True) if item.is_late]
        if not late:
            return None
        places = {} if drawn is None else drawn.places
        if drawn is None or any(item.sequence.sequence_id not in places for item, _ in late):
            raise RuntimeError("a step goes on from tokens that the step before it did not draw")
        rows = [first + item.num_tokens - 1 for item, first in late]
        taken = [places[item.sequence.sequence_id] for item, _ in late]
        both = on_device(torch.tensor((rows, taken), dtype=torch.int64), drawn.token_ids.device)
        return cls(both[0], drawn.token_ids.index_select(0, both[1]))

    def put(self, token_ids: torch.Tensor) -> None:
        """Let a step's tokens, on the device, be these where they were late."""
        token_ids.index_copy_(0, self.rows, self.token_ids)
