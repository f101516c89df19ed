from __future__ import annotations

from pathlib import Path

import pytest

from support.modelled_subject import STEP, ModelledSubject, Quiet
from support.random_engine import random_weights, tiny_architecture, tiny_manifest
from trierarch.benchmarks.ceiling import Ceiling
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.plot import draw
from trierarch.benchmarks.report import Row
from trierarch.benchmarks.scaling import Sweep
from trierarch.benchmarks.scaling_session import ROOFLINE, ScalingSession
from trierarch.benchmarks.workload import Workload
from trierarch.builder.manifest import WEIGHTS_NAME, FileDigest

CEILING = Ceiling(weight_bytes=10**9, kv_bytes=10**6, matrix_flops=1e9, attention_flops=1e3)
SWEEP = Sweep(Workload(seed=1, long_prompt=128, concurrencies=(1, 4)), (128, 1024))


def session_of(*subjects: ModelledSubject) -> tuple[ScalingSession, list[Row]]:
    """The session after its run, and its rows."""
    bandwidths = iter([10.0, 20.0, 15.0, 15.0])
    with Lineup(subjects, num_repeats=2, num_attempts=3, watch=Quiet) as lineup:
        contests = {"executor": tuple(subject.name for subject in subjects[1:])}
        session = ScalingSession(lineup, SWEEP.workload, contests, SWEEP.contexts, CEILING, 100.0, bandwidths.__next__)
        return session, [row for taken in session.figures() for row in session.rows(taken)]


def test_every_point_stands_beside_the_roofline_of_its_minute() -> None:
    _, rows = session_of(ModelledSubject("executor"))

    assert [row.figure for row in rows] == ["decode_c1_p32", "decode_c4_p32", "decode_c1_p128", "decode_c1_p1024"]
    assert [row.rival for row in rows] == [ROOFLINE] * 4
    assert [row.ours for row in rows] == pytest.approx([1 / STEP, 4 / STEP, 1 / STEP, 1 / STEP])
    # 96 tokens of context in the mean: 1.096 GB at 10 GB/s, then four times 96 MB more than 1 GB at 20.
    assert rows[0].rival_value == pytest.approx(10 / 1.096)
    assert rows[1].rival_value == pytest.approx(4 * 20 / 1.384)


def test_rivals_take_part_when_asked() -> None:
    _, rows = session_of(ModelledSubject("executor"), ModelledSubject("rival", 2.0))

    assert {row.rival for row in rows if row.figure == "decode_c4_p32"} == {ROOFLINE, "rival"}


def test_arithmetic_bounds_many_streams_of_short_context() -> None:
    memory_bound, compute_bound = (CEILING.tokens_per_second(count, 0, 10.0, 100.0) for count in (1, 1000))

    assert memory_bound == pytest.approx(10)
    assert compute_bound == pytest.approx(100)


@pytest.mark.parametrize("context", [0, 100, 10_000])
def test_more_streams_never_lower_the_ceiling_and_more_context_never_lifts_it(context: int) -> None:
    rates = [CEILING.tokens_per_second(count, context, 10.0, 100.0) for count in (1, 2, 8, 64)]

    assert rates == sorted(rates)
    assert rates[0] <= CEILING.tokens_per_second(1, 0, 10.0, 100.0)


def test_an_engines_ceiling_counts_what_it_holds() -> None:
    architecture = tiny_architecture()
    weights = random_weights(architecture)
    digest = FileDigest(num_bytes=12_345, sha256="0" * 64)
    manifest = tiny_manifest(architecture).model_copy(update={"files": {WEIGHTS_NAME: digest}})

    ceiling = Ceiling.of(manifest)

    matrices = sum(weight.numel() for weight in weights.values() if weight.dim() == 2)
    assert ceiling.matrix_flops == 2 * matrices
    assert ceiling.attention_flops == 2 * 2 * 2 * 4 * 8  # two products, two layers, four heads of eight
    assert (ceiling.weight_bytes, ceiling.kv_bytes) == (12_345, manifest.kv_cache.bytes_per_token)


def test_a_sweep_fits_its_engine() -> None:
    for sweep in (Sweep.whole(1), Sweep.quick(1)):
        longest = max(sweep.contexts) + sweep.workload.num_output_tokens
        assert sweep.max_seq_len >= longest
        assert sweep.max_batch_size == max(sweep.workload.concurrencies)


def test_the_plot_shows_everybody_and_the_same_points_give_the_same_file(tmp_path: Path) -> None:
    session, _ = session_of(ModelledSubject("executor"), ModelledSubject("rival", 2.0))

    for name in ("first.svg", "second.svg"):
        draw(tmp_path / name, *session.points())

    first = (tmp_path / "first.svg").read_text(encoding="utf-8")
    assert first == (tmp_path / "second.svg").read_text(encoding="utf-8")
    for label in ("roofline", "executor", "rival", "1024"):
        assert label in first


def test_a_run_that_was_cut_can_be_drawn(tmp_path: Path) -> None:
    with Lineup([], num_repeats=1, num_attempts=1, watch=Quiet) as lineup:
        session = ScalingSession(lineup, SWEEP.workload, {}, SWEEP.contexts, CEILING, 100.0, lambda: 10.0)
        draw(tmp_path / "empty.svg", *session.points())

    assert (tmp_path / "empty.svg").is_file()


def test_the_roofline_is_drawn_between_the_extremes_of_bandwidth() -> None:
    session, _ = session_of(ModelledSubject("executor"))

    (first, _), _ = session.points()

    assert (first.lowest, first.highest) == pytest.approx((10 / 1.096, 20 / 1.096))
