from __future__ import annotations

from dataclasses import replace

import pytest

from support.modelled_subject import PEAK_RSS, START, STEP, ModelledSubject, Quiet
from trierarch.benchmarks.cpu_session import CpuSession
from trierarch.benchmarks.engine import EXECUTOR, OURS, TRITON, Footprint
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.report import Row
from trierarch.benchmarks.subjects.subject import SubjectFailed, Timing
from trierarch.benchmarks.verification import ANSWER
from trierarch.benchmarks.workers.protocol import KV_CACHE_BYTES, Ready, TokenIds
from trierarch.benchmarks.workload import Workload

FOOTPRINT = Footprint(weights=269_000_000, streamed=250_000_000)
READ_GB_PER_S = 50.0


class Absent(ModelledSubject):
    def start(self) -> Ready:
        raise SubjectFailed("it does not start")


class StepProbe(ModelledSubject):
    """Of each step's 10 ms the kernels take 9.4 and the sampler 0.2."""

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> Timing:
        timing = super().generate(prompts, num_output_tokens)
        return replace(timing, counters={"step_seconds": 1.0, "kernel_seconds": 0.94, "sampling_seconds": 0.02})


class Silent(ModelledSubject):
    """Counts nothing, as an engine without compiled kernels."""


def session_of(
    *subjects: ModelledSubject, step_probe: ModelledSubject | None = None
) -> tuple[CpuSession, Lineup, dict[tuple[str, str], list[Row]]]:
    """The session after its run, its lineup, and (figure, our subject) -> rows."""
    lineup = Lineup(subjects, num_repeats=2, num_attempts=3, watch=Quiet)
    with lineup:
        contests = dict.fromkeys(OURS, tuple(subject.name for subject in subjects if subject.name not in OURS))
        probe = step_probe or StepProbe("step_probe")
        session = CpuSession(lineup, Workload(seed=1), contests, FOOTPRINT, lambda: READ_GB_PER_S, probe)
        grouped: dict[tuple[str, str], list[Row]] = {}
        for row in (row for taken in session.figures() for row in session.rows(taken)):
            grouped.setdefault((row.figure, row.subject), []).append(row)
    return session, lineup, grouped


@pytest.fixture(scope="module")
def grouped() -> dict[tuple[str, str], list[Row]]:
    subjects = (ModelledSubject(EXECUTOR), ModelledSubject(TRITON, 1.25), ModelledSubject("rival", 2.0))
    return session_of(*subjects)[2]


def test_every_figure_of_the_issue_is_there(grouped: dict[tuple[str, str], list[Row]]) -> None:
    assert {figure for figure, _ in grouped} == {
        "cold_start",
        "decode_b1_p32",
        "decode_b1_p512",
        "bandwidth_share_b1",
        "ttft_p32",
        "ttft_p512",
        "aggregate_c8",
        "aggregate_c32",
        "triton_share_c32",
        "prefix_shared_c8_p512",
        "prefix_distinct_c8_p512",
        "prefix_share_of_cold",
        "host_overhead_c32",
        "sampling_share_c32",
        "peak_rss",
    }


@pytest.mark.parametrize(
    ("figure", "subject", "ours", "ratio", "met"),
    [
        ("decode_b1_p32", EXECUTOR, 1 / STEP, 2.0, True),
        ("decode_b1_p32", TRITON, 0.8 / STEP, 1.6, True),
        ("aggregate_c8", TRITON, None, 1.6, True),
        ("aggregate_c32", EXECUTOR, None, 2.0, True),
        ("aggregate_c32", TRITON, None, 1.6, False),
        ("ttft_p512", EXECUTOR, 522.0, 0.5, True),
        ("ttft_p32", EXECUTOR, 42.0, 0.5, None),
        ("cold_start", EXECUTOR, START, 0.5, True),
        ("cold_start", TRITON, 1.25 * START, 0.625, True),
        ("bandwidth_share_b1", EXECUTOR, 100 / STEP * 250e6 / 50e9, 2.0, False),
        ("triton_share_c32", TRITON, 80.0, None, False),
        ("prefix_share_of_cold", EXECUTOR, 100 * 138 / 4234, 1.0, True),
        ("host_overhead_c32", EXECUTOR, 6.0, None, False),
        ("sampling_share_c32", EXECUTOR, 2.0, None, None),
        ("peak_rss", EXECUTOR, PEAK_RSS / 1e6, 1.0, False),
    ],
)
def test_figures_can_be_worked_out(
    grouped: dict[tuple[str, str], list[Row]],
    figure: str,
    subject: str,
    ours: float | None,
    ratio: float | None,
    met: bool | None,
) -> None:
    (row,) = grouped[figure, subject]

    assert ours is None or row.ours == pytest.approx(ours)
    assert row.ratio is None if ratio is None else row.ratio == pytest.approx(ratio)
    assert row.met is met
    assert len(row.samples) == (1 if figure == "peak_rss" else 2)


def test_goals_are_the_issues(grouped: dict[tuple[str, str], list[Row]]) -> None:
    goals = {key: found[0].goal for key, found in grouped.items()}

    assert goals["cold_start", EXECUTOR] == "≤ 1.8 s"
    assert goals["cold_start", TRITON] == "≤ 2.5 s"
    assert goals["aggregate_c8", EXECUTOR] == "≥ 1.6 × best rival"
    assert goals["peak_rss", TRITON] == f"≤ {round((269e6 + KV_CACHE_BYTES + 350e6) / 1e6)} MB"
    assert goals["host_overhead_c32", EXECUTOR] == "≤ 5 %"
    assert ("triton_share_c32", EXECUTOR) not in goals
    assert ("host_overhead_c32", TRITON) not in goals


def test_each_cold_start_is_a_new_process() -> None:
    subject = ModelledSubject(EXECUTOR)

    session, _, _ = session_of(subject)

    assert subject.num_starts == 2
    assert session.ready[EXECUTOR].settings == {"pace": 1.0}
    assert subject.is_closed


def test_who_answers_wrongly_is_doubted() -> None:
    session, _, _ = session_of(ModelledSubject(EXECUTOR, answer=ANSWER), ModelledSubject("rival", answer=[1, 2]))

    (doubt,) = session.doubts
    assert doubt.startswith("rival is doubtful")


def test_the_step_probe_stays_out_of_every_other_figure() -> None:
    probe = StepProbe("step_probe")

    _, lineup, _ = session_of(ModelledSubject(EXECUTOR), step_probe=probe)

    assert probe.is_closed
    assert probe.num_starts == 1
    assert [subject.name for subject in lineup.subjects] == [EXECUTOR]


def test_without_compiled_kernels_host_overhead_stays_empty() -> None:
    _, lineup, grouped = session_of(ModelledSubject(EXECUTOR), step_probe=Silent("step_probe"))

    (row,) = grouped["host_overhead_c32", EXECUTOR]
    assert (row.ours, row.met) == (None, None)
    assert lineup.notes == ["step_probe left: step_probe: no step of 32 sequences ran compiled kernels"]
    assert grouped["peak_rss", EXECUTOR][0].ours is not None


def test_without_triton_its_figures_stay_empty() -> None:
    _, lineup, grouped = session_of(ModelledSubject(EXECUTOR), Absent(TRITON))

    (row,) = grouped["triton_share_c32", TRITON]
    assert (row.ours, row.met) == (None, None)
    assert grouped["decode_b1_p32", EXECUTOR][0].ours == pytest.approx(1 / STEP)
    assert lineup.notes == ["triton left: it does not start"]
