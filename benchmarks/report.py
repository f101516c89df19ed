"""Report: rows of figure, unit, ours, rival, rival's value, ratio, goal, met; with all that is needed to doubt them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from trierarch.benchmarks.measurement import Measurement


class Better(StrEnum):
    """Which way a figure is good."""

    HIGHER = "higher"
    LOWER = "lower"


class Of(StrEnum):
    """What a goal bounds."""

    VALUE = "value"
    RATIO = "ratio"
    """Ours over the best rival's, whichever way is better."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound that the figure must reach or keep; `Figure.better` says which."""

    of: Of
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What is measured."""

    name: str
    unit: str
    better: Better
    goal: Goal | None = None

    @property
    def goal_text(self) -> str | None:
        """The goal for people."""
        if self.goal is None:
            return None
        sign = "≥" if self.better is Better.HIGHER else "≤"
        of = "× best rival" if self.goal.of is Of.RATIO else self.unit
        return f"{sign} {self.goal.bound:g} {of}"

    def is_met(self, value: float | None, ratio: float | None) -> bool | None:
        """Whether the goal is reached; None where there is no goal or nothing to hold against it."""
        measured = value if self.goal is not None and self.goal.of is Of.VALUE else ratio
        if self.goal is None or measured is None:
            return None
        return measured >= self.goal.bound if self.better is Better.HIGHER else measured <= self.goal.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One of our subjects beside one rival, or alone. Values are medians of the repeats."""

    figure: str
    subject: str
    """Which of ours: `executor`, `triton`, `scheduler`."""
    unit: str
    better: Better
    ours: float | None
    rival: str | None = None
    rival_value: float | None = None
    ratio: float | None = None
    """ours / rival_value."""
    goal: str | None = None
    """On one row of a figure only: the best rival's, or the row without a rival."""
    met: bool | None = None
    samples: tuple[float, ...] = ()
    rival_samples: tuple[float, ...] = ()
    is_disturbed: bool = False
    """Whether other processes used the machine during a repeat of ours, after all attempts."""
    is_rival_disturbed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of one benchmark."""

    benchmark: str
    is_quick: bool
    """Whether it only tried the harness: its figures mean nothing."""
    date: str
    commit: str | None
    """With `+` where the working tree had changes."""
    seed: int
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    lengths: Mapping[str, Any]
    rows: tuple[Row, ...]
    is_complete: bool = True
    """Whether the run came to its end; if not, figures are missing behind the last row."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Subject -> what was set beyond its defaults."""
    notes: tuple[str, ...] = ()
    """What went wrong or must be known."""

    def to_json(self) -> str:
        """For machines; keys in the order above."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> Path:
        """Write it to `path` and return that; of the same run, what was not complete goes."""
        folder.mkdir(parents=True, exist_ok=True)
        path = self.path(folder)
        staging = path.with_suffix(f".{os.getpid()}.part")
        staging.write_text(self.to_json(), encoding="utf-8")
        staging.replace(path)
        if self.is_complete:
            replace(self, is_complete=False).path(folder).unlink(missing_ok=True)
        return path

    def path(self, folder: Path) -> Path:
        """`NAME.json`; of a trial `NAME-quick.json`; until the run's end `...-incomplete.json`: neither replaces a result."""
        name = self.benchmark + ("-quick" if self.is_quick else "") + ("" if self.is_complete else "-incomplete")
        return folder / f"{name}.json"


def compare(
    figure: Figure, subject: str, ours: Measurement | None, rivals: Mapping[str, Measurement] | None = None
) -> list[Row]:
    """Rows of one figure, the best rival first and with the goal; one row without a rival where none was measured."""
    sides: list[tuple[str | None, Measurement | None]] = [(None, None)]
    if rivals:
        is_reversed = figure.better is Better.HIGHER
        sides = [*sorted(rivals.items(), key=lambda side: side[1].median, reverse=is_reversed)]
    rows: list[Row] = []
    for name, theirs in sides:
        value = None if ours is None else ours.median
        ratio = None if value is None or theirs is None or theirs.median == 0 else value / theirs.median
        carries_goal = not rows
        rows.append(
            Row(
                figure=figure.name,
                subject=subject,
                unit=figure.unit,
                better=figure.better,
                ours=value,
                rival=name,
                rival_value=None if theirs is None else theirs.median,
                ratio=ratio,
                goal=figure.goal_text if carries_goal else None,
                met=figure.is_met(value, ratio) if carries_goal else None,
                samples=() if ours is None else ours.values,
                rival_samples=() if theirs is None else theirs.values,
                is_disturbed=ours is not None and ours.is_disturbed,
                is_rival_disturbed=theirs is not None and theirs.is_disturbed,
            )
        )
    return rows
