"""`trierarch doctor`: what is here, and what that allows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at this machine: what Trierarch can do here, and how to get what is missing.

    Starts Triton for a moment to see that it runs. The exit status is 1 when engines cannot be served.
    """
    from trierarch.orchestrator.diagnosis import diagnose

    findings = list(diagnose())
    if json:
        import json as text

        typer.echo(text.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        from rich.table import Table

        from trierarch.orchestrator.console import OUT

        marks = {"good": "[green]✓[/]", "lacking": "[yellow]·[/]", "broken": "[red]✗[/]", "fact": " "}
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column()
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for finding in findings:
            remedy = f"\n[dim]→ {finding.remedy}[/]" if finding.remedy else ""
            table.add_row(marks[finding.state], finding.name, finding.value + remedy)
        OUT.print(table)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)
