"""What is told of logits and log-probs: by each flow of each release, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from support.tensorrt_llm_engines import FLOWS, VOCAB, record_of
from support.token_stream import TokenStream
from trierarch.builder.manifest import Flow
from trierarch.python_backend.errors import ExecutorFailed, InvalidRequest, Overloaded
from trierarch.python_backend.executors.tensorrt_llm.abilities import abilities_of
from trierarch.python_backend.executors.tensorrt_llm.logits import check_likeliest, read_output, read_prompt
from trierarch.python_backend.executors.tensorrt_llm.sampling import is_likeliest_drawn
from trierarch.python_backend.request import FinishReason, Request, SamplingParams, TokenDelta

MakeStandIn = Callable[..., Any]
GREEDY = SamplingParams(max_tokens=4, temperature=0.0)
PROMPT = [11, 12, 13, 14, 15, 16, 17, 18, 19]
TELLS_PROMPTS = [
    ("1.0", Flow.ENGINE, {"kv_cache_config": {"enable_block_reuse": False}}),
    ("1.2", Flow.ENGINE, {}),
    ("1.2", Flow.PYTORCH, {}),
    ("1.2", Flow.PYTORCH, {"sampler_type": "TorchSampler", "gather_generation_logits": False}),
    ("1.3", Flow.PYTORCH, {}),
]
"""With arguments of the LLM, where prefixes are reused unless it says otherwise."""


def row(token: int) -> np.ndarray[Any, Any]:
    return -np.abs(np.arange(VOCAB, dtype=np.float32) - token)


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The slow, obvious way."""
    exact = logits.astype(np.float64)
    found: np.ndarray[Any, Any] = exact - np.log(np.exp(exact).sum())
    return found


def deltas_of(stream: TokenStream) -> list[TokenDelta]:
    found = [stream.next()]
    while found[-1].finish_reason is None:
        found.append(stream.next())
    assert found[-1].finish_reason is FinishReason.LENGTH, found[-1].error
    return found


@pytest.mark.parametrize("release, flow", FLOWS)
def test_generation_logits_are_what_each_token_was_drawn_from(stand_in: MakeStandIn, release: str, flow: Flow) -> None:
    library = stand_in(release, flow)
    sampling = replace(GREEDY, return_generation_logits=True, logprobs=2)
    deltas = deltas_of(library.ask(library.open(), PROMPT, sampling))
    (given,) = library.controls.submissions
    assert given["sampling_params"].logprobs is None, "log-probs of logits are worked out here"
    for delta in deltas:
        assert delta.generation_logits is not None
        assert delta.logprobs is not None
        (logits,), (logprob,), (token,) = delta.generation_logits, delta.logprobs, delta.token_ids
        np.testing.assert_array_equal(logits, row(token))
        exact = log_softmax(row(token))
        assert logprob.logprob == pytest.approx(exact[token])
        assert logprob.top[0] == (token, pytest.approx(exact[token]))
        assert len(logprob.top) == 2


@pytest.mark.parametrize("release, flow, llm_args", TELLS_PROMPTS)
def test_context_logits_are_those_of_the_whole_prompt(
    stand_in: MakeStandIn, release: str, flow: Flow, llm_args: dict[str, Any]
) -> None:
    library = stand_in(release, flow)
    executor = library.open(library.manifest(llm_args=llm_args))
    sampling = replace(GREEDY, return_context_logits=True, prompt_logprobs=3, n=2)
    for _ in range(2):  # the second time all blocks are there
        stream = library.ask(executor, PROMPT, sampling)
        found: list[TokenDelta] = []
        while sum(delta.finish_reason is not None for delta in found) < 2:
            found.append(stream.next())
        first, *later = (delta for delta in found if delta.index == 0)
        assert first.context_logits is not None
        assert first.prompt_logprobs is not None
        for place, logits in enumerate(first.context_logits):
            np.testing.assert_array_equal(logits, row((PROMPT[place] + place) % VOCAB))
        assert first.prompt_logprobs[0] is None
        for place, told in enumerate(first.prompt_logprobs[1:]):
            exact = log_softmax(row((PROMPT[place] + place) % VOCAB))
            assert told is not None
            assert (told.token_id, told.logprob) == (PROMPT[place + 1], pytest.approx(exact[PROMPT[place + 1]]))
            assert [token for token, _ in told.top] == np.argsort(-exact, kind="stable")[:3].tolist()
        others = [*later, *(delta for delta in found if delta.index == 1)]
        assert all(delta.context_logits is None and delta.prompt_logprobs is None for delta in others)
        asks = [submission["sampling_params"].return_context_logits for submission in library.controls.submissions]
        assert sum(asks[-2:]) == 1, "of one sequence of a request"


def test_a_prompt_that_is_told_of_shares_no_prefix_and_others_do(stand_in: MakeStandIn) -> None:
    library = stand_in("1.2")
    executor = library.open()
    for sampling in (replace(GREEDY, prompt_logprobs=0), replace(GREEDY, prompt_logprobs=0), GREEDY):
        library.ask(executor, PROMPT, sampling, cache_salt="tenant").finish()
    salts = [submission.get("cache_salt") for submission in library.controls.submissions]
    assert len(set(salts)) == 3
    assert salts[2] == "tenant"


@pytest.mark.parametrize(
    "release, flow, llm_args, field",
    [
        ("1.0", Flow.ENGINE, {}, "return_context_logits"),
        ("1.0", Flow.PYTORCH, {"kv_cache_config": {"enable_block_reuse": False}}, "return_context_logits"),
        ("1.1", Flow.PYTORCH, {}, "return_context_logits"),
        (
            "1.1",
            Flow.PYTORCH,
            {"kv_cache_config": {"enable_block_reuse": False}, "sampler_type": "TorchSampler"},
            "return_context_logits",
        ),
        ("1.2", Flow.PYTORCH, {"speculative_config": {"decoding_type": "NGram"}}, "return_context_logits"),
        ("1.2", Flow.PYTORCH, {"speculative_config": {"decoding_type": "NGram"}}, "return_generation_logits"),
        ("1.3", Flow.PYTORCH, {"gather_generation_logits": False}, "return_generation_logits"),
        ("1.2", Flow.ENGINE, {"gather_generation_logits": False}, "logprobs"),
        # Asked for these, MTPSampler of 1.0 to 1.2 asserts, which is the end of the engine; later ones tell nothing.
        ("1.2", Flow.PYTORCH, {"speculative_config": {"decoding_type": "MTP"}}, "logprobs"),
        (
            "1.3",
            Flow.PYTORCH,
            {"speculative_config": {"decoding_type": "MTP", "allow_advanced_sampling": True}},
            "logprobs",
        ),
    ],
)
def test_what_a_release_does_not_tell_is_refused_by_name(
    release: str, flow: Flow, llm_args: dict[str, Any], field: str
) -> None:
    asked: dict[str, Any] = {"logprobs": 0} if field == "logprobs" else {field: True}
    with pytest.raises(InvalidRequest) as refusal:
        abilities_of(record_of(release, flow, **llm_args)).check(replace(GREEDY, **asked))
    assert refusal.value.field == field
    if field == "return_context_logits":
        assert "prompt_logprobs" in abilities_of(record_of(release, flow, **llm_args)).refused


def test_an_engine_that_gathered_nothing_tells_of_no_prompt() -> None:
    record = record_of("1.2", Flow.ENGINE).model_copy(update={"build_config": {}})
    with pytest.raises(InvalidRequest, match="--gather-logits"):
        abilities_of(record).check(replace(GREEDY, prompt_logprobs=1))


@pytest.mark.parametrize(
    "release, sampler, tells",
    [
        ("1.0", {"enable_trtllm_sampler": True}, False),
        ("1.0", {"enable_trtllm_sampler": False}, False),
        ("1.1", {"sampler_type": "TRTLLMSampler"}, False),
        ("1.1", {"sampler_type": "TorchSampler"}, True),
        ("1.2", {"sampler_type": "TRTLLMSampler"}, False),
        ("1.2", {"sampler_type": "TorchSampler"}, True),
        ("1.3", {}, True),
    ],
)
def test_a_sampler_that_tells_the_drawn_token_alone_says_so(
    stand_in: MakeStandIn, release: str, sampler: dict[str, Any], tells: bool
) -> None:
    """TRTLLMSampler gives one entry however many are asked for; with logits at hand all releases tell them."""
    llm_args = {**sampler, "gather_generation_logits": False}
    abilities = abilities_of(record_of(release, **llm_args))
    abilities.check(replace(GREEDY, logprobs=0))
    abilities_of(record_of(release, **sampler)).check(replace(GREEDY, logprobs=2))
    if tells:
        abilities.check(replace(GREEDY, logprobs=2))
    else:
        with pytest.raises(InvalidRequest, match=r"logprobs is 2.*--gather-logits"):
            abilities.check(replace(GREEDY, logprobs=2))
    if release == "1.1":
        return
    library = stand_in(release)
    executor = library.open(library.manifest(llm_args=llm_args))
    for count in (0, 2) if tells else (0,):
        for delta in deltas_of(library.ask(executor, PROMPT, replace(GREEDY, logprobs=count))):
            assert delta.logprobs is not None
            assert len(delta.logprobs[0].top) == count


@pytest.mark.parametrize("release, flow", FLOWS)
def test_an_end_token_that_is_hidden_has_logits_of_nobody(stand_in: MakeStandIn, release: str, flow: Flow) -> None:
    library = stand_in(release, flow)
    executor = library.open()
    first, second, *_ = library.ask(executor, PROMPT, GREEDY).finish()[0]
    for library.controls.shows_end_ids in (False, True):
        sampling = replace(GREEDY, return_generation_logits=True, end_ids=(second,))
        stream = library.ask(executor, PROMPT, sampling)
        opening, last = stream.next(), stream.next()
        assert (opening.token_ids, last.token_ids, last.finish_reason) == ((first,), (), FinishReason.STOP)
        assert (len(opening.generation_logits or ()), last.generation_logits) == (1, ())


def request_of(**sampling: Any) -> Request:
    params = SamplingParams(max_tokens=4, **sampling)
    return Request(request_id="r", prompt_token_ids=(1, 2, 3), sampling=params, arrival_time=0.0)


def test_a_prompt_of_which_a_part_is_told_fails() -> None:
    """Blocks that were reused all the same would go for zeros, or shift every other row."""
    request = request_of(return_context_logits=True)
    with pytest.raises(ExecutorFailed, match="logits of 2 of the prompt's 3 tokens"):
        read_prompt(request, torch.zeros(2, 97), 97)
    with pytest.raises(ExecutorFailed, match="shape"):
        read_prompt(request, torch.zeros(3, 96), 97)
    told = read_prompt(request, torch.zeros(3, 99, dtype=torch.float16), 97)
    assert told.logits is not None
    assert [logits.shape for logits in told.logits] == [(97,)] * 3
    assert told.logprobs is None


@pytest.mark.parametrize("num_rows", [0, 3])
def test_rows_that_are_not_those_of_a_step_fail(num_rows: int) -> None:
    with pytest.raises(ExecutorFailed, match=f"{num_rows} rows of logits for 1 tokens"):
        read_output(torch.zeros(num_rows, 97), 1, 1, 97)
    assert len(read_output(None, 0, 0, 97)) == 0
    with pytest.raises(ExecutorFailed):
        read_output(None, 1, 1, 97)


def test_more_logits_than_fit_are_refused(stand_in: MakeStandIn) -> None:
    library = stand_in("1.2")
    executor = library.open()
    executor._logits_budget._max_bytes = 10 * VOCAB * 4
    for field, value in (("return_context_logits", True), ("prompt_logprobs", 0)):
        with pytest.raises(InvalidRequest, match=f"{field} is {value}: 18 tokens of 388 bytes"):
            library.ask(executor, PROMPT * 2, replace(GREEDY, **{field: value}))
    library.controls.gate.clear()
    held = library.ask(executor, PROMPT, replace(GREEDY, return_context_logits=True))
    with pytest.raises(Overloaded, match="logits"):
        library.ask(executor, PROMPT, replace(GREEDY, return_context_logits=True))
    library.controls.gate.set()
    held.finish()
    library.ask(executor, PROMPT, replace(GREEDY, return_context_logits=True)).finish()


def test_logits_of_another_step_fail_where_that_can_be_seen() -> None:
    rows = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 3.0]], np.float32)
    check_likeliest(rows, [1, 2])
    with pytest.raises(ExecutorFailed, match="token 2, which it drew"):
        check_likeliest(rows, [2, 0])
    plain = SamplingParams(max_tokens=4, temperature=0.0)
    assert is_likeliest_drawn(plain)
    for change in ({"temperature": 1.0}, {"logit_bias": {1: 1.0}}, {"min_tokens": 1}, {"presence_penalty": 0.1}):
        assert not is_likeliest_drawn(replace(plain, **change))
