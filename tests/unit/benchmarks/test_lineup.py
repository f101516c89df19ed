from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from support.modelled_subject import PREFILL, STEP, ModelledSubject, Quiet
from trierarch.benchmarks import probes
from trierarch.benchmarks.lineup import Lineup
from trierarch.benchmarks.subjects.subject import AttemptFailed, Subject, SubjectFailed
from trierarch.benchmarks.workload import Workload

WORKLOAD = Workload(seed=1)


def window_of(shares: Iterator[float]) -> type[Quiet]:
    class Scripted(Quiet):
        def share(self) -> float:
            return next(shares)

    return Scripted


def sole(probe: Callable[[Subject, str], float]) -> float:
    return probe(ModelledSubject(), "key")


def test_subjects_take_turns_and_another_goes_first_each_time() -> None:
    heard: list[str] = []

    def probe(subject: Subject, key: str) -> float:
        heard.append(f"{key} {subject.name}")
        return 1.0

    with Lineup([ModelledSubject("a"), ModelledSubject("b")], 2, 3, watch=Quiet) as lineup:
        measured = lineup.measure("rate", probe, before_repeat=lambda: heard.append("repeat"))

    assert heard == ["repeat", "rate/0/0 a", "rate/0/0 b", "repeat", "rate/1/0 b", "rate/1/0 a"]
    assert {name: measurement.values for name, measurement in measured.items()} == {"a": (1, 1), "b": (1, 1)}


def test_a_disturbed_repeat_is_tried_again_with_other_prompts() -> None:
    keys: list[str] = []

    def probe(subject: Subject, key: str) -> float:
        keys.append(key)
        return float(len(keys))

    with Lineup([ModelledSubject()], 1, 3, watch=window_of(iter([0.5, 0.01]))) as lineup:
        measurement = lineup.measure("rate", probe)["modelled"]

    assert keys == ["rate/0/0", "rate/0/1"]
    assert measurement.values == (2.0,)
    assert not measurement.is_disturbed


def test_the_least_disturbed_attempt_counts_when_none_is_quiet() -> None:
    values = itertools.count()

    with Lineup([ModelledSubject()], 1, 3, watch=window_of(iter([0.5, 0.2, 0.4]))) as lineup:
        measurement = lineup.measure("rate", lambda subject, key: float(next(values)))["modelled"]

    assert measurement.values == (1.0,)
    assert measurement.is_disturbed
    assert next(values) == 3


def test_an_attempt_that_gives_no_figure_is_tried_again() -> None:
    keys: list[str] = []

    def probe(subject: Subject, key: str) -> float:
        keys.append(key)
        if len(keys) < 3:
            raise AttemptFailed("one token took longer than many")
        return 7.0

    with Lineup([ModelledSubject()], 1, 3, watch=Quiet) as lineup:
        assert lineup.measure("rate", probe)["modelled"].values == (7.0,)

    assert keys == ["rate/0/0", "rate/0/1", "rate/0/2"]


def test_who_gives_no_figure_at_any_attempt_leaves() -> None:
    def probe(subject: Subject, key: str) -> float:
        raise AttemptFailed("one token took longer than many")

    with Lineup([ModelledSubject("hasty")], 1, 3, watch=Quiet) as lineup:
        assert lineup.measure("rate", probe) == {}
        assert lineup.notes == ["hasty left: one token took longer than many"]


def test_who_fails_leaves_with_a_note_and_the_others_go_on() -> None:
    broken, sound = ModelledSubject("broken"), ModelledSubject("sound")

    def probe(subject: Subject, key: str) -> float:
        if subject is broken and key.startswith("rate/1"):
            raise SubjectFailed("it ended")
        return 1.0

    with Lineup([broken, sound], 3, 3, watch=Quiet) as lineup:
        measured = lineup.measure("rate", probe)

    assert measured.keys() == {"sound"}
    assert len(measured["sound"].values) == 3
    assert lineup.notes == ["broken left: it ended"]
    assert broken.is_closed


def test_a_figure_can_have_fewer_repeats() -> None:
    with Lineup([ModelledSubject()], 3, 3, watch=Quiet) as lineup:
        measured = lineup.measure("rate", lambda subject, key: 1.0, num_repeats=1)

    assert measured["modelled"].values == (1.0,)


def test_who_is_measured_alone_takes_no_turns_and_leaves_with_a_note() -> None:
    single = ModelledSubject("single")

    def fail(subject: Subject, key: str) -> float:
        raise SubjectFailed("it ended")

    with Lineup([ModelledSubject("a")], 2, 3, watch=Quiet) as lineup:
        with lineup.alone(single) as alone:
            assert alone.measure("rate", lambda subject, key: 1.0).keys() == {"single"}
            assert alone.measure("rate", fail) == {}
        assert single.is_closed
        assert lineup.notes == ["single left: it ended"]
        assert lineup.measure("rate", lambda subject, key: 1.0).keys() == {"a"}


def test_everyone_is_closed_at_the_end() -> None:
    subjects = [ModelledSubject("a"), ModelledSubject("b")]

    with pytest.raises(KeyboardInterrupt), Lineup(subjects, 1, 3, watch=Quiet):
        raise KeyboardInterrupt

    assert all(subject.is_closed for subject in subjects)


def test_decode_rate_leaves_the_prompt_out() -> None:
    assert sole(probes.decode_rate(WORKLOAD, 512)) == pytest.approx(1 / STEP)


def test_decode_rate_of_many_streams_is_of_all_together() -> None:
    assert sole(probes.decode_rate(WORKLOAD, 32, concurrency=4)) == pytest.approx(4 / STEP)


def test_a_cached_prompt_is_no_part_of_the_rate() -> None:
    subject = ModelledSubject()

    assert probes.cached_decode_rate(WORKLOAD, 4096)(subject, "key") == pytest.approx(1 / STEP)


def test_time_to_first_token_is_of_prompts_never_seen() -> None:
    assert sole(probes.time_to_first_token(WORKLOAD, 512)) == pytest.approx(1000 * (512 * PREFILL + STEP))


def test_the_aggregate_rate_includes_the_prompts() -> None:
    seconds = sum(WORKLOAD.spread(8)) * PREFILL + 128 * STEP

    assert sole(probes.aggregate_rate(WORKLOAD, 8)) == pytest.approx(8 * 128 / seconds)


def test_a_shared_prefix_costs_only_what_is_behind_it() -> None:
    shared = sole(probes.shared_prefix(WORKLOAD))
    distinct = sole(probes.distinct_prompts(WORKLOAD))

    assert shared == pytest.approx(1000 * (8 * 16 * PREFILL + STEP))
    assert distinct == pytest.approx(1000 * (8 * 528 * PREFILL + STEP))


def test_warming_up_gives_no_measured_prompt_away() -> None:
    subject = ModelledSubject()
    probe = probes.time_to_first_token(WORKLOAD, WORKLOAD.long_prompt)

    probes.warm_up(WORKLOAD, subject)

    assert probe(subject, "ttft/0/0") == sole(probe)
