"""A deployment for people: its cold start as a table, and what was found of its objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from trierarch.kserve.checks.check import Checker, Report
from trierarch.kserve.checks.finding import Severity
from trierarch.kserve.cold_start import ColdStartBudget
from trierarch.kserve.memory import MemoryBudget
from trierarch.kserve.objects.resource import Resource

_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.UNCHECKED: "dim"}


def cold_start_table(budget: ColdStartBudget) -> Table:
    """The phases, what each was worked out from, and what follows."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_footer=True, footer_style="bold")
    table.add_column("cold start", "total")
    table.add_column("seconds", f"{budget.total:.1f}", justify="right")
    allowed = (
        f"× {budget.margin:g}: the server is given {budget.container_deadline} s, a new replica {budget.deadline} s"
    )
    table.add_column("from", Text(allowed, style="dim"))
    for phase in budget.phases:
        table.add_row(phase.name, f"{phase.seconds:.1f}", Text(phase.source, style="dim"))
    return table


def memory_line(memory: MemoryBudget, available: int | None, what: str) -> Text:
    """The bytes of one replica beside what there is."""
    there = "" if available is None else f"; {what} holds {available / (1 << 30):.1f} GiB"
    return Text.assemble(("memory  ", "dim"), f"{memory}{there}")


def findings_lines(report: Report) -> Iterable[Text]:
    """One line a finding."""
    for found in report.findings:
        yield Text.assemble((f"{found.severity.value}: ", _STYLES[found.severity]), str(found))


def sources_line(checker: Checker, objects: Sequence[Resource]) -> str:
    """What the objects were held to."""
    sources = Counter(checker.source(found) or "no schema" for found in objects)
    return ", ".join(f"{count} by {source}" for source, count in sorted(sources.items()))
