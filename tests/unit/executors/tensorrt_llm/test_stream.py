"""What a stream makes of the library's steps, which are cumulative and differ from release to release."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support.token_stream import TokenStream
from trierarch.python_backend.errors import Cancelled, DeadlineExceeded, ExecutorFailed
from trierarch.python_backend.executors.tensorrt_llm.stream import Shape, Stream
from trierarch.python_backend.request import FinishReason, Request, SamplingParams, TokenLogprob


def make(end_ids: tuple[int, ...] = (9,), **sampling: Any) -> tuple[Stream, TokenStream, list[Stream]]:
    sink, ended = TokenStream(), list[Stream]()
    request = Request(
        request_id="r",
        prompt_token_ids=(1, 2, 3, 4, 5),
        sampling=SamplingParams(**({"max_tokens": 8} | sampling)),
        arrival_time=1.0,
    )
    return Stream(request, 0, end_ids, sink, Shape(block_size=2, vocab_size=97), ended.append), sink, ended


def step(token_ids: Sequence[int], reason: str | None = None, logprobs: Any = (), metrics: Any = None) -> Any:
    completion = SimpleNamespace(
        token_ids=list(token_ids), logprobs=logprobs, finish_reason=reason, request_perf_metrics=metrics
    )
    return SimpleNamespace(outputs=[completion], finished=reason is not None)


def test_each_delta_is_what_is_new() -> None:
    stream, sink, ended = make()
    for tokens in ([1], [1], [1, 2, 3]):
        stream.take(step(tokens))
    stream.take(step([1, 2, 3, 4], "length"))
    assert [sink.next().token_ids for _ in range(3)] == [(1,), (2, 3), (4,)]
    assert ended == [stream]
    assert sink.deltas.empty()


@pytest.mark.parametrize("tokens", [[4, 5], [4, 5, 9]], ids=["hidden", "shown"])
def test_an_end_token_is_never_shown_whether_the_library_keeps_it_or_not(tokens: list[int]) -> None:
    stream, sink, _ = make()
    stream.take(step([4]))
    stream.take(step(tokens, "stop"))
    found, last = sink.finish()
    assert (found, last.finish_reason) == ([4, 5], FinishReason.STOP)


def test_an_end_token_that_the_library_does_not_know_ends_the_stream_here() -> None:
    stream, sink, ended = make(end_ids=(9, 8))
    stream.take(step([4, 8, 5]))
    found, last = sink.finish()
    assert (found, last.finish_reason) == ([4], FinishReason.STOP)
    stream.take(step([4, 8, 5, 6], "length"))
    assert sink.deltas.empty()
    assert len(ended) == 1


def test_stop_words_end_with_their_last_token_and_are_shown() -> None:
    stream, sink, _ = make(stop_words=((6, 7), (5, 5, 5)))
    stream.take(step([7, 6]))
    stream.take(step([7, 6, 6, 7, 1]))
    found, last = sink.finish()
    assert (found, last.finish_reason) == ([7, 6, 6, 7], FinishReason.STOP)


@pytest.mark.parametrize(
    "reason, ours, error",
    [
        ("stop", FinishReason.STOP, None),
        ("length", FinishReason.LENGTH, None),
        ("timeout", FinishReason.TIMEOUT, DeadlineExceeded),
        ("cancelled", FinishReason.CANCELLED, Cancelled),
        ("not_finished", FinishReason.ERROR, ExecutorFailed),
    ],
)
def test_reasons_to_end(reason: str, ours: FinishReason, error: type[Exception] | None) -> None:
    stream, sink, _ = make()
    stream.take(step([1], reason))
    _, last = sink.finish()
    assert last.finish_reason is ours
    assert (None if last.error is None else type(last.error)) is error


def test_an_end_from_here_comes_once_and_nothing_after_it() -> None:
    stream, sink, ended = make()
    stream.take(step([1]))
    stream.end(FinishReason.CANCELLED, Cancelled("enough"))
    stream.end(FinishReason.ERROR, ExecutorFailed("late"))
    stream.take(step([1, 2], "length"))
    found, last = sink.finish()
    assert (found, last.finish_reason) == ([1], FinishReason.CANCELLED)
    assert last.usage is not None
    assert last.usage.num_output_tokens == 1
    assert sink.deltas.empty()
    assert len(ended) == 1


def entry(**values: float) -> dict[int, Any]:
    return {int(token[1:]): SimpleNamespace(logprob=value) for token, value in values.items()}


def test_logprobs_are_the_tokens_own_and_the_likeliest() -> None:
    stream, sink, _ = make(logprobs=2)
    entries = [entry(t1=-2.0, t4=-0.5, t6=-1.0), entry(t2=-0.1, t3=-3.0)]
    stream.take(step([1], logprobs=entries[:1]))
    stream.take(step([1, 2], "length", logprobs=entries))
    assert sink.next().logprobs == (TokenLogprob(1, -2.0, ((4, -0.5), (6, -1.0))),)
    assert sink.next().logprobs == (TokenLogprob(2, -0.1, ((2, -0.1), (3, -3.0))),)


def test_logprobs_of_the_drawn_token_alone() -> None:
    stream, sink, _ = make(logprobs=0)
    stream.take(step([1, 2], "length", logprobs=[-0.5, entry(t2=-0.25)]))
    assert sink.next().logprobs == (TokenLogprob(1, -0.5), TokenLogprob(2, -0.25))


@pytest.mark.parametrize("entries", [[], None, [entry(t5=-1.0)]])
def test_logprobs_that_are_missing_are_an_error(entries: Any) -> None:
    stream, _, _ = make(logprobs=1)
    with pytest.raises(ExecutorFailed, match="log-prob"):
        stream.take(step([1], logprobs=entries))


def test_usage_is_by_our_clock_and_the_librarys_counts() -> None:
    stream, sink, _ = make()
    stream.start(SimpleNamespace())  # type: ignore[arg-type]
    metrics = SimpleNamespace(
        kv_cache_metrics=SimpleNamespace(num_reused_blocks=2, num_new_allocated_blocks=3),
        timing_metrics=SimpleNamespace(
            arrival_time=timedelta(seconds=5000), first_scheduled_time=timedelta(seconds=9000)
        ),
        speculative_decoding=SimpleNamespace(total_draft_tokens=8, total_accepted_draft_tokens=5),
    )
    stream.take(step([1, 2], "length", metrics=metrics))
    usage = sink.next().usage
    assert usage is not None
    assert (usage.num_prompt_tokens, usage.num_cached_tokens, usage.num_output_tokens) == (5, 4, 2)
    assert (usage.num_new_blocks, usage.num_reused_blocks) == (3, 2)
    assert (usage.num_draft_tokens, usage.num_accepted_draft_tokens) == (8, 5)
    assert usage.arrival_ns == 10**9
    assert usage.first_scheduled_ns == usage.first_token_ns, "however long the library says that it waited"


def test_usage_without_metrics_is_zero_where_nothing_is_known() -> None:
    stream, sink, _ = make()
    stream.start(SimpleNamespace())  # type: ignore[arg-type]
    stream.take(step([1], "length"))
    usage = sink.next().usage
    assert usage is not None
    assert (usage.num_cached_tokens, usage.num_new_blocks, usage.num_draft_tokens) == (0, 0, 0)
    assert 0 < usage.first_scheduled_ns <= usage.first_token_ns


def test_cached_tokens_are_the_librarys_where_it_counts_them() -> None:
    stream, sink, _ = make()
    last = step([1], "length")
    last.cached_tokens = 3
    stream.take(last)
    usage = sink.next().usage
    assert usage is not None
    assert usage.num_cached_tokens == 3


def test_a_stream_whose_first_step_has_no_logits_of_the_prompt_fails() -> None:
    stream, _, _ = make(return_context_logits=True)
    first = step([1])
    first.context_logits = None
    assert not stream.awaits_prompt(first)
    with pytest.raises(ExecutorFailed, match="no logits of the prompt"):
        stream.take(first)


def test_a_prompt_is_read_once() -> None:
    stream, sink, _ = make(return_context_logits=True)
    for tokens in ([1], [1, 2]):
        each: SimpleNamespace = step(tokens)
        each.context_logits = torch.zeros(5, 97)
        assert stream.awaits_prompt(each) is (tokens == [1])
        if tokens == [1]:
            stream.read_prompt(each)
        stream.take(each)
    assert len(sink.next().context_logits or ()) == 5
    assert sink.next().context_logits is None
