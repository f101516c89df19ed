"""Progress: how a long operation tells what it is doing, without knowing who watches."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the stages of a build in order; the command line draws them as bars."""

    def stage(self, name: str, total: int | None, unit: str = "bytes") -> None:
        """Begin `name`; it is over when the next stage begins. `total`, in `unit`, is None where it is not known."""
        ...

    def advance(self, amount: int) -> None:
        """`amount` more of the current stage is done."""
        ...


class DraftProgress:
    """Tells the stages of a draft's build as the draft's, among those of the engine it drafts for."""

    def __init__(self, progress: Progress) -> None:
        """Tell `progress`."""
        self._progress = progress

    def stage(self, name: str, total: int | None, unit: str = "bytes") -> None:
        """Begin `draft {name}`."""
        self._progress.stage(f"draft {name}", total, unit)

    def advance(self, amount: int) -> None:
        """Pass the amount on."""
        self._progress.advance(amount)


class NoProgress:
    """Watches nothing."""

    def stage(self, name: str, total: int | None, unit: str = "bytes") -> None:
        """Ignore the stage."""

    def advance(self, amount: int) -> None:
        """Ignore the amount."""
