from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from trierarch.benchmarks.measurement import Measurement, Sample
from trierarch.benchmarks.report import Better, Figure, Goal, Of, Report, Row, compare
from trierarch.benchmarks.table import show

RATE = Figure(name="decode", unit="tok/s", better=Better.HIGHER, goal=Goal(Of.RATIO, 1.6))
DELAY = Figure(name="ttft", unit="ms", better=Better.LOWER, goal=Goal(Of.RATIO, 1.0))
START = Figure(name="start", unit="s", better=Better.LOWER, goal=Goal(Of.VALUE, 1.8))


def of(*values: float) -> Measurement:
    return Measurement.of(values)


def report(*rows: Row, is_quick: bool = False) -> Report:
    return Report(
        benchmark="cpu",
        is_quick=is_quick,
        date="2026-11-22 12:00 UTC",
        commit="abc",
        seed=1,
        machine={"cpu": "EPYC", "cores": 2, "memory_bytes": 2**34, "limits": {"read_gb_per_s": 31.9}},
        versions={"trierarch": "0.1.0"},
        lengths={"num_output_tokens": 128},
        rows=rows,
        notes=("vllm left: it ended",),
    )


def test_the_goal_stands_against_the_best_rival_only() -> None:
    rows = compare(RATE, "executor", of(150), {"slow": of(50), "fast": of(100)})

    assert [(row.rival, row.ratio) for row in rows] == [("fast", 1.5), ("slow", 3.0)]
    assert [(row.goal, row.met) for row in rows] == [("≥ 1.6 × best rival", False), (None, None)]


def test_the_best_rival_of_a_delay_is_the_shortest() -> None:
    rows = compare(DELAY, "executor", of(300), {"slow": of(500), "fast": of(320)})

    assert rows[0].rival == "fast"
    assert rows[0].ratio == pytest.approx(0.9375)
    assert rows[0].met is True


@pytest.mark.parametrize(
    ("figure", "ours", "rival", "met"),
    [
        (RATE, 160.0, 100.0, True),
        (RATE, 159.0, 100.0, False),
        (DELAY, 100.0, 100.0, True),
        (DELAY, 100.1, 100.0, False),
        (START, 1.8, None, True),
        (START, 1.81, None, False),
        (START, 1.7, 0.1, True),
    ],
)
def test_a_goal_is_met_at_its_bound(figure: Figure, ours: float, rival: float | None, met: bool) -> None:
    rivals = {} if rival is None else {"rival": of(rival)}

    assert compare(figure, "executor", of(ours), rivals)[0].met is met


def test_a_ratio_without_a_rival_is_neither_met_nor_missed() -> None:
    (row,) = compare(RATE, "executor", of(100))

    assert (row.rival, row.rival_value, row.ratio, row.met) == (None, None, None, None)
    assert row.goal == "≥ 1.6 × best rival"


def test_what_we_could_not_measure_meets_nothing() -> None:
    rows = compare(START, "triton", None, {"rival": of(2.0)})

    assert [(row.ours, row.rival_value, row.met) for row in rows] == [(None, 2.0, None)]


def test_a_row_shows_the_median_and_keeps_every_repeat() -> None:
    (row,) = compare(RATE, "executor", of(3, 1, 200), {"rival": of(1, 2)})

    assert (row.ours, row.rival_value) == (3, 1.5)
    assert (row.samples, row.rival_samples) == ((3, 1, 200), (1, 2))


def test_a_disturbed_repeat_marks_its_side() -> None:
    disturbed = Measurement((Sample(1.0, 0.06), Sample(1.0, 0.0)))

    for ours, rival in ((of(1), of(1)), (disturbed, of(1)), (of(1), disturbed)):
        (row,) = compare(RATE, "executor", ours, {"rival": rival})
        assert (row.is_disturbed, row.is_rival_disturbed) == (ours is disturbed, rival is disturbed)


def test_shares_pair_repeats_so_that_drift_cancels() -> None:
    share = of(10, 30, 20).share_of(of(20, 60, 40))

    assert share.values == (50, 50, 50)


def test_a_measurement_is_never_empty() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Measurement(())


def test_the_file_has_all_that_a_reader_needs(tmp_path: Path) -> None:
    path = report(*compare(RATE, "executor", of(150), {"fast": of(100)})).write(tmp_path)

    assert path == tmp_path / "cpu.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert {"machine", "versions", "seed", "commit", "date", "lengths", "rows"} <= content.keys()
    (row,) = content["rows"]
    expected = {"figure": "decode", "unit": "tok/s", "ours": 150, "rival": "fast", "rival_value": 100, "ratio": 1.5}
    assert row | expected | {"goal": "≥ 1.6 × best rival", "met": False} == row


def test_a_trial_never_replaces_a_result(tmp_path: Path) -> None:
    report().write(tmp_path)
    report(is_quick=True).write(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {"cpu.json", "cpu-quick.json"}


def test_what_is_not_complete_replaces_no_result_and_goes_when_it_is(tmp_path: Path) -> None:
    report().write(tmp_path)
    growing = replace(report(*compare(RATE, "executor", of(150))), is_complete=False)

    path = growing.write(tmp_path)

    assert path == tmp_path / "cpu-incomplete.json"
    assert json.loads(path.read_text(encoding="utf-8"))["is_complete"] is False
    assert json.loads((tmp_path / "cpu.json").read_text(encoding="utf-8"))["rows"] == []
    replace(growing, is_complete=True).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cpu.json"]


def test_the_table_tells_a_run_that_was_cut() -> None:
    shown = io.StringIO()

    show(replace(report(), is_complete=False), Console(width=160, file=shown))

    assert "did not come to its end" in shown.getvalue()


def test_the_table_shows_goals_marks_and_notes() -> None:
    disturbed = Measurement((Sample(150.0, 0.5),))
    rows = compare(RATE, "executor", disturbed, {"fast": of(100), "slow": of(50)}) + compare(RATE, "triton", None)
    shown = io.StringIO()

    show(report(*rows, is_quick=True), Console(width=160, file=shown))

    for text in ("150*", "1.50 ×", "3.00 ×", "≥ 1.6 × best rival", "no", "vllm left: it ended", "figures mean nothing"):
        assert text in shown.getvalue()
