"""ActiveAdapter: an adapter that takes part in steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Arranged(Protocol):
    """An adapter's weights as a runner wants them; what is inside is the runner's affair."""

    @property
    def num_bytes(self) -> int:
        """Of memory that it takes."""
        ...


@dataclass(frozen=True, slots=True)
class ActiveAdapter:
    """What a running sequence computes with. Its weights stay where they are as long as somebody has this."""

    digest: str
    slot: int
    """1 to the engine's max_adapters; no two adapters that are active at once have the same."""
    weights: Arranged
    """The served model's."""
    draft_weights: Arranged | None = None
    """The draft model's, where it runs adapted."""
