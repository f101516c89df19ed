"""RichProgress: the builder's stages as progress bars."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text


class AmountColumn(DownloadColumn):
    """What is done of all, in the stage's unit."""

    def render(self, task: Task) -> Text:
        """Nothing for a stage of unknown length."""
        if task.total is None or task.fields["is_endless"]:
            return Text()
        if task.fields["unit"] == "bytes":
            return super().render(task)
        return Text(f"{task.completed:,.0f}/{task.total:,.0f} {task.fields['unit']}", style="progress.download")


class RichProgress:
    """Draws a bar for each stage while the `with` block lasts; see `trierarch.builder.progress.Progress`."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            AmountColumn(binary_units=True),
            TimeElapsedColumn(),
            console=console,
        )
        self._stage: TaskID | None = None

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the last bar, unless it failed."""
        if error is None:
            self._finish()
        self._bars.stop()

    def stage(self, name: str, total: int | None, unit: str = "bytes") -> None:
        """Begin the next bar; one of unknown length pulses."""
        self._finish()
        self._stage = self._bars.add_task(name, total=total, unit=unit, is_endless=total is None)

    def advance(self, amount: int) -> None:
        """Move the bar."""
        if self._stage is not None:
            self._bars.advance(self._stage, amount)

    def _finish(self) -> None:
        if self._stage is not None:
            task = self._bars.tasks[self._stage]
            total = task.completed if task.total is None else task.total
            self._bars.update(self._stage, total=total, completed=total)
