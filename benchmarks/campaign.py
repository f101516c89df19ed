"""Campaign: a session's figures as a report that grows, so that a run that is cut leaves what it measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from trierarch.benchmarks import provenance
from trierarch.benchmarks.machine import Limits, Machine
from trierarch.benchmarks.registry import Options
from trierarch.benchmarks.report import Report, Row
from trierarch.benchmarks.rivals.rival import Rival
from trierarch.benchmarks.session import Session

DISTRIBUTIONS: Final = ("trierarch", "torch", "tritonclient", "nvidia-pytriton")


def blank(benchmark: str, options: Options, limits: Limits, lengths: Mapping[str, Any]) -> Report:
    """A report that says all but what was measured."""
    return Report(
        benchmark=benchmark,
        is_quick=options.is_quick,
        date=provenance.now(),
        commit=provenance.commit(),
        seed=options.seed,
        machine=Machine.here().to_dict() | {"limits": asdict(limits)},
        versions=provenance.versions(DISTRIBUTIONS),
        lengths=lengths,
        rows=(),
        is_complete=False,
    )


def reports(report: Report, session: Session, rivals: list[Rival]) -> Iterator[Report]:
    """Run `session`: `report` with more rows after each figure, and the complete one last."""
    rows: list[Row] = []

    def grown(is_complete: bool) -> Report:
        return replace(
            report,
            is_complete=is_complete,
            rows=report.rows + tuple(rows),
            versions={**report.versions, **_versions(session)},
            settings={**report.settings, **_settings(session, rivals)},
            notes=report.notes + tuple(_notes(session, rivals)),
        )

    for taken in session.figures():
        rows += session.rows(taken)
        yield grown(is_complete=False)
    yield grown(is_complete=True)


def _versions(session: Session) -> dict[str, str]:
    return {name: ready.version for name, ready in session.ready.items() if name not in session.contests}


def _settings(session: Session, rivals: list[Rival]) -> dict[str, Any]:
    settings: dict[str, Any] = {rival.name: {"what": rival.summary} for rival in rivals}
    for name, ready in session.ready.items():
        settings[name] = settings.get(name, {}) | ready.settings
    return settings


def _notes(session: Session, rivals: list[Rival]) -> list[str]:
    notes = [*session.lineup.notes, *session.doubts]
    if not rivals:
        notes.append(
            "no rival was measured; name installed ones with --rivals, install with: python -m trierarch.benchmarks install NAME"
        )
    return notes
