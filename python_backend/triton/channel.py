"""Channel: the way back to one Triton request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trierarch.python_backend.triton.responses import NamedArray


class Channel(Protocol):
    """What a request's owner needs of its way back. Safe to use from several threads."""

    def send(self, arrays: Sequence[NamedArray], is_final: bool) -> None:
        """Send one response; nothing happens once the channel is closed."""
        ...

    def fail(self, error: BaseException) -> None:
        """Send an error as the last response; nothing happens once the channel is closed."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the client has gone or cancelled. Costs a round trip to the server, some 0.2 ms."""
        ...
