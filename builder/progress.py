"""Progress: how a long operation tells what it is doing, without knowing who watches."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the stages of a build in order; the command line draws them as bars."""

    def stage(self, name: str, total_bytes: int | None) -> None:
        """Begin `name`; it is over when the next stage begins. `total_bytes` is None where it is not known."""
        ...

    def advance(self, num_bytes: int) -> None:
        """`num_bytes` more of the current stage are done."""
        ...


class NoProgress:
    """Watches nothing."""

    def stage(self, name: str, total_bytes: int | None) -> None:
        """Ignore the stage."""

    def advance(self, num_bytes: int) -> None:
        """Ignore the bytes."""
