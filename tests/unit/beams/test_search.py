"""BeamSearch by hand, and against every answer there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trierarch.python_backend.beams.admission import check_room
from trierarch.python_backend.beams.params import MAX_BEAM_WIDTH, BeamParams, EarlyStopping
from trierarch.python_backend.beams.search import BeamSearch
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.request import FinishReason, SamplingParams, TokenLogprob

Model = Callable[[tuple[int, ...]], Sequence[float]]
"""The log-probs of all tokens after an output."""
END = 0


def start(params: BeamParams, end_ids: Sequence[int] = (END,), max_tokens: int = 8, **sampling: Any) -> BeamSearch:
    return BeamSearch(
        params, SamplingParams(max_tokens=max_tokens, **sampling), frozenset(end_ids), prompt_token_ids=(5,)
    )


def step(search: BeamSearch, model: Model) -> None:
    candidates = []
    for beam in search.beams:
        logprobs = model(beam.token_ids)
        top = sorted(enumerate(logprobs), key=lambda item: -item[1])[: search.num_candidates]
        candidates.append(TokenLogprob(top[0][0], top[0][1], tuple(top)))
    search.advance(candidates)


def run(search: BeamSearch, model: Model) -> list[tuple[int, ...]]:
    while not search.is_over:
        step(search, model)
    return [beam.token_ids for beam in search.finished]


def same_always(*probabilities: float) -> Model:
    return lambda _: [math.log(probability) for probability in probabilities]


def test_two_steps_by_hand() -> None:
    search = start(BeamParams(width=2), max_tokens=2)
    step(search, same_always(0.1, 0.6, 0.3))
    assert [beam.token_ids for beam in search.beams] == [(1,), (2,)]
    step(search, same_always(0.1, 0.6, 0.3))
    assert [beam.token_ids for beam in search.finished] == [(1, 1), (1, 2)]
    best = search.finished[0]
    assert best.score == best.cum_logprob == pytest.approx(2 * math.log(0.6))
    assert best.finish_reason is FinishReason.LENGTH
    assert search.is_over


def test_an_end_token_counts_in_the_score_and_is_not_shown() -> None:
    search = start(BeamParams(width=2, length_penalty=1.0))
    step(search, same_always(0.5, 0.3, 0.2))
    (ended,) = search.finished
    assert (ended.token_ids, ended.logprobs, ended.finish_reason) == ((), (), FinishReason.STOP)
    assert ended.cum_logprob == pytest.approx(math.log(0.5))
    step(search, same_always(0.5, 0.3, 0.2))
    assert [beam.token_ids for beam in search.finished] == [(), (1,)]
    assert search.finished[1].score == pytest.approx(math.log(0.3 * 0.5) / 2)
    assert len(search.finished[1].logprobs) == 1


def test_an_end_that_is_not_among_the_best_is_no_answer() -> None:
    search = start(BeamParams(width=2))
    step(search, same_always(0.2, 0.5, 0.3))
    assert search.finished == ()


@pytest.mark.parametrize(
    ("stopping", "num_steps"), [(EarlyStopping.FULL, 2), (EarlyStopping.LIKELY, 3), (EarlyStopping.NEVER, 4)]
)
def test_when_it_stops_looking(stopping: EarlyStopping, num_steps: int) -> None:
    """Worked out by hand: the worse of two answers ranks at ln 0.3 = -1.2, the best living beam has ln 0.36 = -1.02.

    A third token costs 6: -7.02 / 3 is worse, but -7.02 / 8, which it might still come to, is better; a fourth ends that.
    """

    def model(output: tuple[int, ...]) -> Sequence[float]:
        return [math.log(0.3), math.log(0.6), math.log(0.1)] if len(output) < 2 else [-6.0] * 3

    search = start(BeamParams(width=2, length_penalty=1.0, early_stopping=stopping))
    for number in range(1, num_steps + 1):
        assert not search.is_over
        step(search, model)
        assert len(search.finished) == min(number, 2)
    assert search.is_over


def test_diversity_favours_the_children_of_other_beams_and_leaves_scores_alone() -> None:
    def model(output: tuple[int, ...]) -> Sequence[float]:
        return [-9.0, -1.0, -1.2] if not output else [-9.0, -0.5, -0.6]

    plain, diverse = start(BeamParams(width=2)), start(BeamParams(width=2, diversity_rate=0.35))
    for search in (plain, diverse):
        step(search, model)
        step(search, model)
    assert [beam.token_ids for beam in plain.beams] == [(1, 1), (1, 2)]
    assert [beam.token_ids for beam in diverse.beams] == [(2, 1), (2, 2)]
    assert diverse.beams[0].cum_logprob == pytest.approx(-1.7)


def test_words_and_min_tokens() -> None:
    model = same_always(0.5, 0.3, 0.15, 0.05)
    first = run(start(BeamParams(width=2), max_tokens=3, min_tokens=2), model)[0]
    assert len(first) == 2
    assert all(not _has(tokens, (1, 1)) for tokens in run(start(BeamParams(width=4), bad_words=((1, 1),)), model))
    barred_by_prompt = run(start(BeamParams(width=2), max_tokens=1, bad_words=((5, 1),)), model)
    assert (1,) not in barred_by_prompt
    stopped = start(BeamParams(width=2), end_ids=(), stop_words=((1, 2),))
    assert all(tokens[-2:] == (1, 2) or len(tokens) == 8 for tokens in run(stopped, model))
    late = start(BeamParams(width=2), end_ids=(), stop_words=((0,),), min_tokens=3, max_tokens=5)
    assert all(len(tokens) > 3 or 0 not in tokens for tokens in run(late, model))


def _has(tokens: tuple[int, ...], word: tuple[int, ...]) -> bool:
    return any(tokens[place : place + len(word)] == word for place in range(len(tokens)))


def test_what_else_stops_an_answer_is_asked() -> None:
    search = BeamSearch(
        BeamParams(width=2), SamplingParams(max_tokens=9), frozenset(), (), lambda tokens: sum(tokens) >= 3
    )
    assert all(sum(tokens) >= 3 > sum(tokens[:-1]) for tokens in run(search, same_always(0.2, 0.5, 0.3)))


def test_logprobs_come_with_as_many_rivals_as_asked() -> None:
    search = start(BeamParams(width=2), logprobs=3, max_tokens=1)
    step(search, same_always(0.1, 0.4, 0.3, 0.2))
    assert [len(beam.logprobs[0].top) for beam in search.finished] == [3, 3]


@st.composite
def tables(draw: st.DrawFn) -> Model:
    """Three tokens, any distributions."""
    weights = draw(st.lists(st.lists(st.integers(1, 50), min_size=3, max_size=3), min_size=13, max_size=13))
    outputs = [output for length in range(3) for output in itertools.product(range(3), repeat=length)]
    rows = {output: [math.log(w / sum(row)) for w in row] for output, row in zip(outputs, weights, strict=True)}
    return lambda output: rows[output]


@given(model=tables(), length_penalty=st.sampled_from([-1.0, 0.0, 0.7, 2.0]))
def test_wide_enough_it_finds_the_best_of_all_answers(model: Model, length_penalty: float) -> None:
    """Nine beams hold whatever two tokens can be; the slow way writes all answers down."""
    params = BeamParams(width=9, length_penalty=length_penalty, early_stopping=EarlyStopping.NEVER)
    search = start(params, max_tokens=2)
    run(search, model)
    everything: dict[tuple[int, ...], float] = {}
    for output in itertools.product(range(3), repeat=2):
        said = output[: output.index(END) + 1] if END in output else output
        logprob = sum(model(said[:place])[token] for place, token in enumerate(said))
        everything[said] = logprob / len(said) ** length_penalty
    best = sorted(everything.values(), reverse=True)
    assert [beam.score for beam in search.finished] == pytest.approx(best[: len(search.finished)])
    assert len(search.finished) == len(everything)


@given(model=tables(), width=st.integers(2, 4), stopping=st.sampled_from(EarlyStopping))
def test_answers_are_distinct_ranked_and_what_they_say_they_are(
    model: Model, width: int, stopping: EarlyStopping
) -> None:
    search = start(BeamParams(width=width, length_penalty=1.0, early_stopping=stopping), max_tokens=3)
    answers = run(search, model)
    assert len(set(answers)) == len(answers) <= width
    scores = [beam.score for beam in search.finished]
    assert scores == sorted(scores, reverse=True)
    for beam in search.finished:
        ended = beam.finish_reason is FinishReason.STOP
        tokens = (*beam.token_ids, *([END] if ended else []))
        assert beam.cum_logprob == pytest.approx(sum(model(tokens[:i])[token] for i, token in enumerate(tokens)))
        assert [item.token_id for item in beam.logprobs] == list(beam.token_ids)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"width": 1}, f"beam_width is 1: must be between 1 and {MAX_BEAM_WIDTH}"),
        ({"width": MAX_BEAM_WIDTH + 1}, "beam_width is 11"),
        ({"width": 2, "length_penalty": 17.0}, "length_penalty is 17.0: must be between -16 and 16"),
        ({"width": 2, "length_penalty": math.nan}, "length_penalty is nan"),
        ({"width": 2, "diversity_rate": math.inf}, "beam_search_diversity_rate is inf"),
    ],
)
def test_values_out_of_range_are_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        BeamParams(**fields)


def test_more_words_than_a_step_can_list_are_refused() -> None:
    words = tuple((token,) for token in range(1, 13))
    start(BeamParams(width=7), bad_words=words)
    with pytest.raises(
        InvalidRequest, match=r"beam_width is 8: with 13 tokens .* must be at most 7; ask for fewer beams"
    ):
        start(BeamParams(width=8), bad_words=words)


def test_room() -> None:
    check_room(10, 6, 16, 15)
    check_room(20, 6, 16, 16)  # the executor's own check names what is wrong
    with pytest.raises(InvalidRequest, match="max_tokens is 7: must be at most 6 after 10 prompt tokens"):
        check_room(10, 7, 16, 100)
    with pytest.raises(
        InvalidRequest, match=r"max_tokens is 6: with 10 prompt tokens it needs 15 KV slots and .* has 14"
    ):
        check_room(10, 6, 16, 14)
