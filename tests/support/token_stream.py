"""TokenStream: what one request's sink was given."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field

from trierarch.python_backend.request import FinishReason, TokenDelta

PATIENCE_SECONDS = 60.0


@dataclass
class TokenStream:
    """A sink that remembers."""

    deltas: queue.SimpleQueue[TokenDelta] = field(default_factory=queue.SimpleQueue)

    def __call__(self, delta: TokenDelta) -> None:
        self.deltas.put(delta)

    def next(self) -> TokenDelta:
        """The next delta, once it is there."""
        return self.deltas.get(timeout=PATIENCE_SECONDS)

    def finish(self) -> tuple[list[int], TokenDelta]:
        """All token ids and the last delta, of a request for one sequence."""
        tokens: list[int] = []
        while True:
            delta = self.next()
            tokens += delta.token_ids
            if delta.finish_reason is not None:
                return tokens, delta

    def endings(self, num_sequences: int) -> dict[int, TokenDelta]:
        """The last delta of each sequence, by index."""
        ended: dict[int, TokenDelta] = {}
        while len(ended) < num_sequences:
            delta = self.next()
            assert delta.index not in ended, f"sequence {delta.index} goes on after its end"
            if delta.finish_reason is not None:
                ended[delta.index] = delta
        return ended

    def reasons(self, num_sequences: int) -> dict[int, FinishReason | None]:
        """Why each sequence ended, by index."""
        return {index: delta.finish_reason for index, delta in self.endings(num_sequences).items()}
