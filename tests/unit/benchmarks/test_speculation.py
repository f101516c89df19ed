from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from support.modelled_subject import STEP, ModelledSubject, Quiet
from trierarch.benchmarks.chats import Chats, Kind
from trierarch.benchmarks.engine import EXECUTOR, TRITON
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.report import Row
from trierarch.benchmarks.speculation import Sweep, ours
from trierarch.benchmarks.speculation_plot import draw
from trierarch.benchmarks.speculation_session import DRAFTED, Plan, SpeculationSession, off
from trierarch.benchmarks.subjects.subject import Timing
from trierarch.benchmarks.workers.protocol import TokenIds
from trierarch.benchmarks.workload import Workload

PLAN = Plan(static_lengths=(0, 4, 8), num_distinct=3, num_agentic_repeats=3, num_sweep_repeats=1)
WORKLOAD = Workload(seed=1, concurrencies=(1, 2, 16), num_repeats=2)
PACES = {
    EXECUTOR: 0.4, off(EXECUTOR): 1.0, "executor-4": 0.5, "executor-8": 0.39, TRITON: 0.5, off(TRITON): 1.25,
    DRAFTED: 0.5, off(DRAFTED): 1.0, "rival": 0.6, "other": 2.0,
}  # fmt: skip


class Guessing(ModelledSubject):
    """Of a prompt it has answered n times, n in four tokens are guessed right, and none is guessed wrong but the first."""

    def __init__(self, name: str, pace: float) -> None:
        super().__init__(name, pace)
        self.asked: list[list[TokenIds]] = []
        self.lengths: list[int] = []

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> Timing:
        num_before = self.asked.count(prompts)
        self.asked.append(prompts)
        self.lengths.append(num_output_tokens)
        timing = super().generate(prompts, num_output_tokens)
        num_right = timing.num_tokens * min(num_before, 3) / 4
        counters = {"num_draft_tokens": num_right + len(prompts), "num_accepted_draft_tokens": num_right}
        return replace(timing, counters=counters)


def session_of(*subjects: ModelledSubject) -> tuple[SpeculationSession, dict[tuple[str, str], list[Row]]]:
    """The session after its run, and (figure, our subject) -> rows."""
    with Lineup(subjects, WORKLOAD.num_repeats, num_attempts=3, watch=Quiet) as lineup:
        chats = Chats(1, lambda text: [hash(word) for word in text.split()])
        session = SpeculationSession(lineup, WORKLOAD, ("rival", "other"), chats, PLAN)
        grouped: dict[tuple[str, str], list[Row]] = {}
        for row in (row for taken in session.figures() for row in session.rows(taken)):
            grouped.setdefault((row.figure, row.subject), []).append(row)
    return session, grouped


@pytest.fixture(scope="module")
def executor() -> Guessing:
    return Guessing(EXECUTOR, PACES[EXECUTOR])


@pytest.fixture(scope="module")
def grouped(executor: Guessing) -> dict[tuple[str, str], list[Row]]:
    others = [ModelledSubject(name, pace) for name, pace in PACES.items() if name != EXECUTOR]
    return session_of(executor, *others)[1]


def test_every_kind_is_swept_over_every_number_of_streams(grouped: dict[tuple[str, str], list[Row]]) -> None:
    for kind in Kind:
        for count in WORKLOAD.concurrencies:
            for figure in ("decode", "share_of_off", "static"):
                assert (f"{figure}_{kind}_c{count}", EXECUTOR) in grouped


@pytest.mark.parametrize(
    ("figure", "subject", "value", "ratio", "goal", "met"),
    [
        ("decode_copy_c1", EXECUTOR, 2.5 / STEP, 1.5, "≥ 1.3 × best rival", True),
        ("decode_edit_c1", TRITON, 2.0 / STEP, 1.2, "≥ 1.3 × best rival", False),
        ("decode_prose_c1", EXECUTOR, 2.5 / STEP, 1.5, None, None),
        ("speedup_copy_c1", EXECUTOR, 2.5, None, "≥ 3 ×", False),
        ("speedup_prose_c1", EXECUTOR, 2.5, None, "≥ 1.1 ×", True),
        ("speedup_prose_c1", TRITON, 2.5, None, "≥ 1.1 ×", True),
        ("speedup_agentic_c1", EXECUTOR, 2.5, None, None, None),
        ("speedup_draft_model_c1", DRAFTED, 2.0, None, "≥ 1.4 ×", True),
        ("share_of_off_prose_c16", EXECUTOR, 250.0, None, "≥ 98 %", True),
        ("static_prose_c2", EXECUTOR, 5.0 / STEP, 0.39 / 0.4, "≥ 0.97 × best rival", True),
        ("acceptance_agentic_r1", EXECUTOR, 0.0, None, None, None),
        ("acceptance_agentic_r2", EXECUTOR, 100 * 32 / 33, None, None, None),
        ("acceptance_agentic_r3", EXECUTOR, 100 * 64 / 65, None, "≥ 80 %", True),
        ("guessed_agentic_r3", EXECUTOR, 50.0, None, None, None),
        ("guessed_agentic_least_rise", EXECUTOR, 25.0, None, "≥ -1 points", True),
    ],
)
def test_figures_can_be_worked_out(
    grouped: dict[tuple[str, str], list[Row]],
    figure: str,
    subject: str,
    value: float,
    ratio: float | None,
    goal: str | None,
    met: bool | None,
) -> None:
    row = grouped[figure, subject][0]

    assert row.ours == pytest.approx(value)
    assert row.ratio is None if ratio is None else row.ratio == pytest.approx(ratio)
    assert (row.goal, row.met) == (goal, met)


def test_static_lengths_stand_beside_ours_and_no_rival_does(grouped: dict[tuple[str, str], list[Row]]) -> None:
    assert [row.rival for row in grouped["static_copy_c1", EXECUTOR]] == ["executor-8", "executor-4", off(EXECUTOR)]
    assert [row.rival for row in grouped["decode_copy_c1", EXECUTOR]] == ["rival", "other"]
    assert [row.rival for row in grouped["decode_copy_c2", EXECUTOR]] == [None]


def test_many_streams_are_of_few_prompts_and_few_repeats(
    grouped: dict[tuple[str, str], list[Row]], executor: Guessing
) -> None:
    assert len(grouped["decode_copy_c16", EXECUTOR][0].samples) == 1
    assert len(grouped["decode_copy_c2", EXECUTOR][0].samples) == 2
    (most,) = {len({tuple(prompt) for prompt in prompts}) for prompts in executor.asked if len(prompts) == 16}
    assert most == PLAN.num_distinct


def test_a_rate_of_one_stream_is_of_several_prompts_by_themselves(
    grouped: dict[tuple[str, str], list[Row]], executor: Guessing
) -> None:
    single = {
        str(prompts) for prompts, n in zip(executor.asked, executor.lengths, strict=True) if len(prompts) == n == 1
    }
    assert len(single) == PLAN.num_single * WORKLOAD.num_repeats * len(Kind)


def test_only_agentic_prompts_were_answered_before(
    grouped: dict[tuple[str, str], list[Row]], executor: Guessing
) -> None:
    """Each rate takes three calls of the same prompts; the first of them computes the prompts, or answers them too."""
    calls: dict[str, list[int]] = {}
    for prompts, length in zip(executor.asked, executor.lengths, strict=True):
        if len(prompts) == 2:
            calls.setdefault(str(prompts), []).append(length)
    patterns = [tuple(lengths) for lengths in calls.values() if len(lengths) > 1]
    assert patterns == [(1, 1, 128)] * 6 + [(128, 1, 128)] * 2  # two repeats of each kind, the agents last


def test_without_variants_their_figures_stay_empty() -> None:
    _, grouped = session_of(ModelledSubject(EXECUTOR))

    assert grouped["decode_copy_c1", EXECUTOR][0].ours == pytest.approx(1 / STEP)
    for figure in ("speedup_copy_c1", "share_of_off_copy_c2"):
        (row,) = grouped[figure, EXECUTOR]
        assert (row.ours, row.met) == (None, None)
    assert grouped["speedup_draft_model_c1", DRAFTED][0].ours is None
    assert grouped["acceptance_agentic_r3", EXECUTOR][0].ours == 0


def test_each_engine_is_asked_in_several_ways_but_fixed_lengths_by_themselves() -> None:
    subjects = list(ours(Path("engine"), Path("drafted"), PLAN))

    assert {subject.name for subject in subjects} == set(PACES) - {"rival", "other"}


def test_the_plot_shows_every_kind_and_the_same_points_give_the_same_file(tmp_path: Path) -> None:
    subjects = [Guessing(name, PACES[name]) for name in (EXECUTOR, off(EXECUTOR), "executor-4")]
    session, _ = session_of(*subjects)

    for name in ("first.svg", "second.svg"):
        draw(tmp_path / name, session.points)

    first = (tmp_path / "first.svg").read_text(encoding="utf-8")
    assert first == (tmp_path / "second.svg").read_text(encoding="utf-8")
    for label in ("copy", "edit", "prose", "agentic", "adaptive", "always 4", "streams"):
        assert label in first


def test_a_run_that_was_cut_can_be_drawn(tmp_path: Path) -> None:
    draw(tmp_path / "empty.svg", [])

    assert (tmp_path / "empty.svg").is_file()


@pytest.mark.parametrize("sweep", [Sweep.whole(1), Sweep.quick(1)])
def test_a_sweep_measures_against_no_speculation_and_one_stream(sweep: Sweep) -> None:
    assert sweep.plan.static_lengths[0] == 0
    assert sweep.workload.concurrencies[0] == 1
