"""A borrowed machine's run: whatever fails, the next stage runs, and all is written where it was asked for."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from trierarch.benchmarks import borrowed
from trierarch.benchmarks.borrowed import Loan


@pytest.fixture
def loan(tmp_path: Path) -> Loan:
    return Loan(tmp_path / "out", time.monotonic() + 60)


def test_a_stage_that_fails_leaves_the_others(loan: Loan, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(loan: Loan) -> str | None:
        raise OSError("no disk")

    stages = {"check": broken, "tests": lambda loan: "exit status 1", "bench": lambda loan: None}
    monkeypatch.setattr(borrowed, "STAGES", stages)
    outcomes = borrowed.run(loan, list(stages))
    assert [outcome.failure for outcome in outcomes] == ["OSError: no disk", "exit status 1", None]
    lines = (loan.out / "summary.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == list(stages)
    assert lines[2].endswith("ok")


def test_what_is_missing_is_named(loan: Loan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borrowed, "NEEDED", ("numpy", "no-such-package"))
    monkeypatch.setattr(borrowed, "_device", dict)
    loan.out.mkdir()
    assert borrowed.check(loan) == "no-such-package not installed: what needs it fails below"
    assert json.loads((loan.out / "check.json").read_text())["missing"] == ["no-such-package"]


@pytest.mark.parametrize(
    ("code", "seconds", "failure"),
    [
        ("print('hello')", 60, None),
        ("print('hello'); raise SystemExit(3)", 60, "exit status 3, see step.log"),
        ("import time; time.sleep(600)", 1, "cut after 1 s, see step.log"),
    ],
)
def test_a_command_is_logged_and_cut(loan: Loan, code: str, seconds: float, failure: str | None) -> None:
    loan.out.mkdir()
    assert borrowed._run(loan, "step", [sys.executable, "-c", code], seconds) == failure
    log = (loan.out / "step.log").read_text()
    assert log.startswith("hello") or "hello" not in code


def test_an_unknown_stage_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        borrowed.main(["--out", str(tmp_path), "--include", "nothing"])
    assert "--include names 'nothing': there are check, tests, attention, bench" in capsys.readouterr().err
