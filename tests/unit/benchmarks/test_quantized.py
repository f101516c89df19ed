from __future__ import annotations

from pathlib import Path

import pytest

from support.modelled_subject import PEAK_RSS, STEP, ModelledSubject, Quiet
from trierarch.benchmarks.engine import Footprint
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.quantized import num_bytes
from trierarch.benchmarks.quantized_session import QuantizedSession
from trierarch.benchmarks.report import Row
from trierarch.benchmarks.workload import Workload
from trierarch.builder.manifest import Accuracy

CONTESTS = {"executor-int8": ("rival-q8", "other-q8"), "executor-int4": ("rival-q4",)}
ACCURACY = Accuracy(
    text="a text", num_tokens=100, perplexity=10.3, reference_perplexity=10.0, greedy_agreement=0.9, mean_kl=0.05
)


@pytest.fixture(scope="module")
def grouped() -> dict[tuple[str, str], list[Row]]:
    """(figure, our subject) -> rows."""
    paces = {"executor-int8": 1.0, "executor-int4": 0.5, "rival-q8": 1.1, "other-q8": 4.0, "rival-q4": 1.0}
    subjects = [ModelledSubject(name, pace) for name, pace in paces.items()]
    footprints = {name: Footprint(weights=100_000_000, streamed=100_000_000) for name in CONTESTS}
    sizes = dict.fromkeys(paces, 100_000_000) | {"rival-q8": 200_000_000}
    with Lineup(subjects, num_repeats=2, num_attempts=3, watch=Quiet) as lineup:
        session = QuantizedSession(lineup, Workload(seed=1), CONTESTS, footprints, sizes, {"executor-int4": ACCURACY})
        grouped: dict[tuple[str, str], list[Row]] = {}
        for row in (row for taken in session.figures() for row in session.rows(taken)):
            grouped.setdefault((row.figure, row.subject), []).append(row)
    return grouped


def test_each_engine_stands_beside_rivals_of_its_own_bits(grouped: dict[tuple[str, str], list[Row]]) -> None:
    for (figure, subject), rows in grouped.items():
        rivals = {row.rival for row in rows} - {None}
        assert rivals == (set() if figure in ACCURACY_FIGURES else set(CONTESTS[subject]))


ACCURACY_FIGURES = {"perplexity_increase", "greedy_agreement", "mean_kl"}


def test_every_figure_is_there(grouped: dict[tuple[str, str], list[Row]]) -> None:
    common = {"decode_b1_p32", "decode_b1_p512", "ttft_p512", "aggregate_c8", "aggregate_c32", "peak_rss", "model_size"}
    figures = {subject: {figure for figure, of in grouped if of == subject} for subject in CONTESTS}

    assert figures == {"executor-int8": common, "executor-int4": common | ACCURACY_FIGURES}


@pytest.mark.parametrize(
    ("figure", "subject", "ours", "ratio", "goal", "met"),
    [
        ("decode_b1_p32", "executor-int8", 1 / STEP, 1.1, "≥ 1.2 × best rival", False),
        ("decode_b1_p512", "executor-int4", 2 / STEP, 2.0, "≥ 1.2 × best rival", True),
        ("ttft_p512", "executor-int4", 261.0, 0.5, None, None),
        ("model_size", "executor-int8", 100.0, 1.0, None, None),
        ("peak_rss", "executor-int8", PEAK_RSS / 1e6, 1.0, "≤ 1524 MB", False),
        ("perplexity_increase", "executor-int4", 3.0, None, "≤ 2 %", False),
        ("greedy_agreement", "executor-int4", 90.0, None, None, None),
    ],
)
def test_figures_can_be_worked_out(
    grouped: dict[tuple[str, str], list[Row]],
    figure: str,
    subject: str,
    ours: float,
    ratio: float | None,
    goal: str | None,
    met: bool | None,
) -> None:
    row = grouped[figure, subject][0]

    assert row.ours == pytest.approx(ours)
    assert row.ratio is None if ratio is None else row.ratio == pytest.approx(ratio)
    assert (row.goal, row.met) == (goal, met)


def test_aggregates_are_taken_once(grouped: dict[tuple[str, str], list[Row]]) -> None:
    assert len(grouped["aggregate_c32", "executor-int8"][0].samples) == 1
    assert len(grouped["decode_b1_p32", "executor-int8"][0].samples) == 2


def test_a_model_is_as_large_as_its_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "weights").write_bytes(b"12345")
    (tmp_path / "inner" / "more").write_bytes(b"678")

    assert num_bytes(tmp_path) == 8
    assert num_bytes(tmp_path / "weights") == 5
