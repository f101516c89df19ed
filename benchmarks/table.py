"""The report as a table for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from trierarch.benchmarks.report import Better, Report, Row


def show(report: Report, console: Console) -> None:
    """Print `report`."""
    console.print(Group(*_parts(report)))


def _parts(report: Report) -> Iterator[RenderableType]:
    if report.is_quick:
        yield Text("quick: this only tried the harness, the figures mean nothing", style="bold yellow")
    if not report.is_complete:
        yield Text("incomplete: the run did not come to its end", style="bold yellow")
    yield _table(report)
    machine = report.machine
    yield Text(f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB", style="dim")
    limits = ", ".join(f"{name} {value:.1f}" for name, value in machine.get("limits", {}).items())
    if limits:
        yield Text(f"this machine, today: {limits}", style="dim")
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield Text(f"{report.date}, commit {report.commit or 'unknown'}, seed {report.seed}; {versions}", style="dim")
    for note in report.notes:
        yield Text(f"note: {note}", style="yellow")


def _table(report: Report) -> Table:
    table = Table(title=f"benchmark {report.benchmark}", title_justify="left")
    table.add_column("figure", no_wrap=True)
    table.add_column("ours through", no_wrap=True)
    table.add_column("ours", justify="right")
    table.add_column("unit")
    table.add_column("rival", no_wrap=True)
    table.add_column("rival's", justify="right")
    table.add_column("ours / rival's", justify="right")
    table.add_column("goal", no_wrap=True)
    table.add_column("met", justify="center")
    last = None
    for row in report.rows:
        is_new = last is None or (row.figure, row.subject) != (last.figure, last.subject)
        if last is not None and row.figure != last.figure:
            table.add_section()
        table.add_row(
            Text(row.figure if last is None or row.figure != last.figure else ""),
            row.subject if is_new else "",
            _number(row.ours, row.is_disturbed) if is_new else "",
            row.unit if is_new else "",
            row.rival or "",
            _number(row.rival_value, row.is_rival_disturbed) if row.rival else "",
            _ratio(row),
            row.goal or "",
            _met(row),
        )
        last = row
    if any(row.is_disturbed or row.is_rival_disturbed for row in report.rows):
        table.caption = "* other processes used the machine during a repeat"
    return table


def _number(value: float | None, is_disturbed: bool) -> str:
    """Three significant digits or all of the integer part: repeats do not agree on more."""
    if value is None:
        return "–"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + ("*" if is_disturbed else "")


def _ratio(row: Row) -> Text:
    if row.ratio is None:
        return Text("")
    is_ahead = row.ratio >= 1 if row.better is Better.HIGHER else row.ratio <= 1
    return Text(f"{row.ratio:.2f} ×", style="green" if is_ahead else "red")


def _met(row: Row) -> Text:
    if row.goal is None:
        return Text("")
    return {True: Text("yes", style="green"), False: Text("no", style="red"), None: Text("–")}[row.met]
