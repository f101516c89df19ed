"""How a request's sampling reads in the library's words, and what is refused for want of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from support.tensorrt_llm_engines import FLOWS, manifest_of, record_of
from support.token_stream import TokenStream
from trierarch.builder.manifest import Flow
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.executors.fake import next_token
from trierarch.python_backend.executors.tensorrt_llm.abilities import abilities_of
from trierarch.python_backend.executors.tensorrt_llm.admission import Admission
from trierarch.python_backend.executors.tensorrt_llm.logits import LogitsAsked
from trierarch.python_backend.executors.tensorrt_llm.sampling import sampling_arguments
from trierarch.python_backend.request import (
    FinishReason,
    Guide,
    GuideKind,
    Request,
    RetainedRange,
    Retention,
    SamplingParams,
    SpeculationParams,
)

MakeStandIn = Callable[..., Any]
GREEDY = SamplingParams(max_tokens=8, temperature=0.0)
SAMPLED = SamplingParams(max_tokens=8)


def arguments(sampling: SamplingParams, index: int = 0) -> dict[str, Any]:
    return sampling_arguments(sampling, index, (1,), 0, 97, LogitsAsked.of(sampling, index, gathers=False))


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(max_tokens=8, top_k=1, seed=3)])
def test_greedy_is_what_the_library_takes_for_greedy(sampling: SamplingParams) -> None:
    given = arguments(sampling)
    assert given["top_k"] == 1
    assert not given.keys() & {"top_p", "temperature", "seed", "min_p"}


def test_sampling_is_never_what_the_library_takes_for_greedy() -> None:
    """It does so where neither top_k nor top_p is given, whatever the temperature."""
    given = arguments(SAMPLED)
    assert (given["top_k"], given["top_p"], given["temperature"]) == (0, 1.0, 1.0)


def test_each_sequence_has_the_seed_that_the_protocol_says() -> None:
    seeded = replace(SAMPLED, seed=2**64 - 1, n=2)
    assert [arguments(seeded, index)["seed"] for index in (0, 1)] == [2**64 - 1, 0]
    assert arguments(SAMPLED)["seed"] != arguments(SAMPLED)["seed"], "the library's own default is one for all"


def test_end_tokens() -> None:
    assert arguments(GREEDY)["end_id"] == 1
    assert arguments(replace(GREEDY, end_ids=(7, 8)))["end_id"] == 7
    assert arguments(replace(GREEDY, end_ids=()))["end_id"] == -1


def test_a_bias_and_banned_tokens_are_one_array() -> None:
    bias = arguments(replace(GREEDY, logit_bias={3: 1.5, 4: 2.0}, bad_words=((4,), (5,))))["embedding_bias"]
    assert bias.shape == (97,)
    assert {token: bias[token] for token in (3, 4, 5, 6)} == {3: 1.5, 4: -float("inf"), 5: -float("inf"), 6: 0.0}


def refused(release: str, flow: Flow, sampling: SamplingParams, **changes: Any) -> str | None:
    """The field that a request is refused for."""
    llm_args, fields = changes.pop("llm_args", {}), {"arrival_time": 0.0, **changes}
    manifest = manifest_of(record_of(release, flow, **llm_args), eos=(1,))
    assert manifest.tensorrt_llm is not None
    request = Request(request_id="r", prompt_token_ids=(1, 2), sampling=sampling, **fields)
    try:
        Admission(manifest, abilities_of(manifest.tensorrt_llm)).check(request)
    except InvalidRequest as error:
        return error.field
    return None


ALL_OF_SAMPLING = SamplingParams(
    max_tokens=8,
    min_tokens=1,
    top_k=5,
    top_p=0.9,
    min_p=0.1,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias={3: 1.0},
    bad_words=((4,),),
    seed=7,
    end_ids=(2,),
    logprobs=3,
    n=3,
    guide=Guide(GuideKind.JSON),
)


@pytest.mark.parametrize("release, flow", [("1.0", Flow.ENGINE), ("1.2", Flow.ENGINE), ("1.3", Flow.PYTORCH)])
def test_all_that_an_engine_can_do_is_taken(release: str, flow: Flow) -> None:
    assert refused(release, flow, ALL_OF_SAMPLING) is None
    assert refused(release, flow, replace(GREEDY, stop_words=((3, 4), (5,)), n=2)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"bad_words": ((4, 5),)},
        {"min_tokens": 2, "end_ids": (1, 2)},
        {"min_tokens": 2, "stop_words": ((5,),)},
    ],
)
@pytest.mark.parametrize("release", ["1.0", "1.2", "1.3"])
def test_what_no_release_does_is_refused_by_name(release: str, change: dict[str, Any]) -> None:
    assert refused(release, Flow.PYTORCH, replace(GREEDY, **change)) == next(iter(change))


LACKING = {
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "min_p": 0.1,
    "seed": 3,
}


@pytest.mark.parametrize("field", LACKING)
def test_a_sampler_without_code_for_a_field_refuses_it(field: str) -> None:
    """TorchSampler of 1.2 answers as if nothing had been asked."""
    sampling = replace(SAMPLED, **{field: LACKING[field]})
    assert refused("1.2", Flow.PYTORCH, sampling, llm_args={"sampler_type": "TorchSampler"}) == field
    assert refused("1.2", Flow.PYTORCH, sampling, llm_args={"sampler_type": "TRTLLMSampler"}) is None
    assert refused("1.3", Flow.PYTORCH, sampling) is None


@pytest.mark.parametrize("field", ["seed", "min_p"])
def test_what_only_sampling_heeds_is_no_reason_to_refuse_a_greedy_request(field: str) -> None:
    sampling = replace(GREEDY, **{field: LACKING[field]})
    assert refused("1.2", Flow.PYTORCH, sampling, llm_args={"sampler_type": "auto"}) is None


@pytest.mark.parametrize(
    "release, config, is_refused",
    [
        ("1.2", {"decoding_type": "MTP"}, True),
        ("1.2", {"decoding_type": "Eagle", "eagle3_one_model": False}, False),
        ("1.2", {"decoding_type": "NGram"}, False),
        ("1.3", {"decoding_type": "Eagle3"}, True),
        ("1.3", {"decoding_type": "Eagle3", "allow_advanced_sampling": True}, False),
        ("1.3", {"decoding_type": "Draft_Target"}, True),
    ],
)
def test_speculation_that_only_takes_the_likeliest_token_says_so(
    release: str, config: dict[str, Any], is_refused: bool
) -> None:
    llm_args = {"speculative_config": config}
    assert refused(release, Flow.PYTORCH, SAMPLED, llm_args=llm_args) == ("temperature" if is_refused else None)
    assert refused(release, Flow.PYTORCH, GREEDY, llm_args=llm_args) is None


def test_the_first_sampler_of_all_is_greedy() -> None:
    plain = {"enable_trtllm_sampler": False}
    assert refused("1.0", Flow.PYTORCH, SAMPLED, llm_args=plain) == "temperature"
    assert refused("1.0", Flow.PYTORCH, SAMPLED, llm_args={**plain, "enable_mixed_sampler": True}) is None
    assert refused("1.0", Flow.PYTORCH, GREEDY, llm_args=plain) is None


def test_what_an_engine_was_built_without_is_refused() -> None:
    guided = replace(GREEDY, guide=Guide(GuideKind.JSON))
    assert refused("1.2", Flow.PYTORCH, guided, llm_args={"guided_decoding_backend": None}) == "guide"
    logprobs = replace(GREEDY, logprobs=1)
    assert refused("1.2", Flow.ENGINE, logprobs, llm_args={"gather_generation_logits": False}) == "logprobs"


def test_prefixes_that_cannot_be_kept_apart_are_refused() -> None:
    assert refused("1.0", Flow.ENGINE, GREEDY, cache_salt="tenant") == "cache_salt"
    unshared = {"kv_cache_config": {"enable_block_reuse": False}}
    assert refused("1.0", Flow.ENGINE, GREEDY, cache_salt="tenant", llm_args=unshared) is None
    assert refused("1.2", Flow.ENGINE, GREEDY, cache_salt="tenant") is None


def test_drafts_and_their_limits_change_nothing(stand_in: MakeStandIn) -> None:
    library = stand_in()
    executor = library.open()
    plain = library.ask(executor, [1, 2]).finish()[0]
    for speculation in (SpeculationParams(max_draft_tokens=0), SpeculationParams(draft_token_ids=(3, 4))):
        assert library.ask(executor, [1, 2], speculation=speculation).finish()[0] == plain


@pytest.mark.parametrize("release", ["1.0", "1.2", "1.3"])
def test_salt_and_priority_go_where_a_release_takes_them(stand_in: MakeStandIn, release: str) -> None:
    library = stand_in(release)
    executor = library.open()
    salt = "" if release == "1.0" else "tenant"
    for priority in (-100, 0, 100):
        library.ask(executor, [1, 2], cache_salt=salt, priority=priority).finish()
    sent = library.controls.submissions
    assert [submission.get("cache_salt") for submission in sent] == [salt or None] * 3
    expected = [0.0, 0.5, 1.0] if release == "1.3" else [None] * 3
    assert [submission.get("priority") for submission in sent] == expected


def test_a_bias_a_ban_and_min_tokens_reach_the_drawing(stand_in: MakeStandIn) -> None:
    library = stand_in()
    executor = library.open()
    first = next_token([1, 2], 3, 97)
    assert library.ask(executor, [1, 2], replace(GREEDY, logit_bias={40: 9.0})).finish()[0] == [40] * 8
    assert library.ask(executor, [1, 2], replace(GREEDY, bad_words=((first,),))).finish()[0][0] == first + 1
    ended, last = library.ask(executor, [1, 2], replace(GREEDY, end_ids=(first,))).finish()
    assert (ended, last.finish_reason) == ([], FinishReason.STOP)
    tokens, _ = library.ask(executor, [1, 2], replace(GREEDY, end_ids=(first,), min_tokens=1)).finish()
    assert tokens[0] == first + 1


def test_a_seed_gives_the_same_answer_again_and_no_seed_another(stand_in: MakeStandIn) -> None:
    library = stand_in()
    executor = library.open()

    def answer(sampling: SamplingParams) -> list[int]:
        tokens: list[int] = library.ask(executor, [1, 2], sampling).finish()[0]
        return tokens

    seeded = replace(SAMPLED, seed=11)
    assert answer(seeded) == answer(seeded)
    assert len({tuple(answer(SAMPLED)) for _ in range(5)}) > 1
    stream: TokenStream = library.ask(executor, [1, 2], replace(seeded, n=2))
    tokens: dict[int, list[int]] = {0: [], 1: []}
    ended = 0
    while ended < 2:
        delta = stream.next()
        tokens[delta.index] += delta.token_ids
        ended += delta.finish_reason is not None
    assert tokens == {0: answer(seeded), 1: answer(replace(seeded, seed=12))}


@pytest.mark.parametrize("release, flow", FLOWS)
def test_wishes_for_cached_blocks_are_passed_on(stand_in: MakeStandIn, release: str, flow: Flow) -> None:
    library = stand_in(release, flow)
    executor = library.open()
    ranges = (RetainedRange(0, 2, 90, duration_ms=1500), RetainedRange(2, None, 10))
    wishes = Retention(ranges=ranges, decode_priority=5, decode_duration_ms=20)
    for retention in (None, wishes, Retention(ranges=ranges)):
        library.ask(executor, [1, 2, 3], retention=retention).finish()
    none, both, plain = (sent.get("kv_cache_retention_config") for sent in library.controls.submissions)
    assert none is None
    assert (both.decode_retention_priority, both.decode_duration_ms) == (5, timedelta(milliseconds=20))
    assert "decode_retention_priority" not in plain.given
    first, second = both.token_range_retention_configs
    assert (first.token_start, first.token_end, first.priority) == (0, 2, 90)
    assert first.duration_ms == timedelta(seconds=1.5)
    assert (second.token_end, second.duration_ms) == (None, None)


def test_wishes_that_the_library_refuses_fail_no_request(
    stand_in: MakeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = stand_in()
    executor = library.open()
    module = importlib.import_module("tensorrt_llm.bindings.executor")
    monkeypatch.setattr(module.KvCacheRetentionConfig, "__init__", lambda self, **given: int("nothing"))
    retention = Retention(ranges=(RetainedRange(0, None, 1),))
    assert library.ask(executor, [1, 2, 3], retention=retention).finish()[1].error is None
    assert executor.is_healthy


def test_a_sequence_that_the_cache_cannot_hold_is_refused(stand_in: MakeStandIn) -> None:
    """The library would let it wait for ever."""
    library = stand_in()
    manifest = library.manifest()
    kv_cache = manifest.kv_cache.model_copy(update={"num_bytes": 10 * manifest.kv_cache.bytes_per_token})
    executor = library.open(manifest.model_copy(update={"kv_cache": kv_cache}))
    with pytest.raises(InvalidRequest, match="it needs 11 KV slots and the cache has 10"):
        library.ask(executor, [1, 2, 3, 4], replace(GREEDY, max_tokens=8))
    library.ask(executor, [1, 2, 3], replace(GREEDY, max_tokens=8)).finish()
