"""Bundling changes how many responses a stream has, never what they say."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from trierarch.python_backend.request import FinishReason, TokenDelta, TokenLogprob
from trierarch.python_backend.text.bundle import RESPONSES_PER_STEP, Bundle, tokens_per_response


def delta(*token_ids: int) -> TokenDelta:
    logprobs = tuple(TokenLogprob(token, -0.5) for token in token_ids)
    return TokenDelta(request_id="r", index=0, token_ids=token_ids, logprobs=logprobs)


def test_few_streams_hold_nothing_back() -> None:
    assert tokens_per_response(1) == tokens_per_response(RESPONSES_PER_STEP) == 1
    assert tokens_per_response(RESPONSES_PER_STEP + 1) == 2
    assert tokens_per_response(4 * RESPONSES_PER_STEP) == 4


def test_the_first_and_the_last_go_at_once() -> None:
    bundle = Bundle()
    assert bundle.add(delta(1), 3) == delta(1)
    assert bundle.add(delta(2), 3) is None
    last = replace(delta(3), finish_reason=FinishReason.LENGTH)
    assert bundle.add(last, 3) == replace(delta(2, 3), finish_reason=FinishReason.LENGTH)


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=3), st.integers(1, 4)), min_size=1))
def test_nothing_is_lost_and_no_stream_falls_behind(steps: list[tuple[list[int], int]]) -> None:
    bundle = Bundle()
    sent: list[TokenDelta] = []
    for index, (token_ids, most) in enumerate(steps):
        is_last = index == len(steps) - 1
        one = replace(delta(*token_ids), finish_reason=FinishReason.STOP if is_last else None)
        bundled = bundle.add(replace(one, prompt_logprobs=() if index == 0 else None), most)
        assert bundled is not None or most > 1
        sent += [] if bundled is None else [bundled]
    assert [token for one in sent for token in one.token_ids] == [token for ids, _ in steps for token in ids]
    assert all(tuple(p.token_id for p in one.logprobs or ()) == one.token_ids for one in sent)
    assert sent[0].prompt_logprobs == ()
    assert [one.finish_reason for one in sent] == [None] * (len(sent) - 1) + [FinishReason.STOP]
