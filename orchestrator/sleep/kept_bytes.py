"""KeptBytes: what clients have sent and the front may have to send again, of all of them together: bounded."""

from __future__ import annotations

from typing import Final

MAX_REQUEST_BYTES: Final = 64 << 20
"""Of one request that is kept. Over HTTP, as in Triton itself, no larger one is taken."""
MAX_KEPT_BYTES: Final = 256 << 20
"""Of all that are kept at once."""


class TooManyBytes(Exception):
    """There is no room for more until something else was answered."""


class KeptBytes:
    """A count. What is taken must be given back."""

    def __init__(self) -> None:
        """Nothing is kept."""
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Keep so many more.

        Raises:
            TooManyBytes: they are not kept.
        """
        if self.num_bytes + num_bytes > MAX_KEPT_BYTES:
            raise TooManyBytes(f"requests that wait for an answer have {MAX_KEPT_BYTES} bytes already; come back later")
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Keep so many no longer."""
        self.num_bytes -= num_bytes
