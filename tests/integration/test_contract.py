"""TensorRT-LLM's contract, held by a real Triton over the demo engine, as clients of that backend see it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.eventually import eventually
from support.metrics import kv_blocks, requests, wait_for_active, wait_until_idle
from support.triton_requests import Reply, ask, refusal, stream, unary
from trierarch.ensembles.compose import ComposeOptions, compose
from trierarch.orchestrator.metrics import Metrics
from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.serving import serving
from trierarch.orchestrator.triton_server import ServerConfig, TritonServer
from trierarch.python_backend.triton.status import StatusCode

PROMPT = "The capital of France is"
ANSWER = " Paris"
TEXT_MODELS = ["tensorrt_llm", "ensemble", "tensorrt_llm_bls"]
LONG: dict[str, Any] = {"text_input": "1 2 3 4 5 6 7 8", "max_tokens": 1000, "end_id": -1, "stream": True}


@pytest.fixture
def grpc(triton: TritonServer) -> Iterator[str]:
    """Address of a server that is idle before and after."""
    wait_until_idle(triton.endpoints.metrics)
    yield triton.endpoints.grpc
    wait_until_idle(triton.endpoints.metrics)


def text_of(replies: list[Reply]) -> str:
    return "".join(reply.text for reply in replies if reply.arrays)


def generate(triton: TritonServer, model: str, kind: str = "generate", **body: Any) -> httpx.Response:
    url = f"{triton.endpoints.http}/v2/models/{model}/{kind}"
    return httpx.post(url, json=body, timeout=120, trust_env=False)


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_a_stream_says_what_a_whole_answer_says(grpc: str, model: str) -> None:
    ask_for = {"text_input": PROMPT, "max_tokens": 8}
    (whole,) = ask(grpc, model, request_id="whole", **ask_for)
    # A prompt that was answered before may be answered in one piece, guessed ahead.
    pieces = ask(grpc, model, request_id="pieces", stream=True, max_draft_tokens=0, **ask_for)

    assert whole.text.startswith(PROMPT + ANSWER)
    assert PROMPT + text_of(pieces) == whole.text
    assert len(pieces) > 1
    assert {reply.request_id for reply in pieces} == {"pieces"}
    assert [reply.is_final for reply in pieces] == [False] * (len(pieces) - 1) + [True]
    assert whole.arrays["text_output"].shape == (1,)
    assert all(reply.arrays for reply in pieces)


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_the_prompt_is_left_out_on_demand(grpc: str, model: str) -> None:
    (reply,) = ask(grpc, model, text_input=PROMPT, max_tokens=2, exclude_input_in_output=True)
    assert reply.text.startswith(ANSWER)


def test_the_steps_by_hand_say_what_the_ensemble_says(grpc: str) -> None:
    """What end_to_end_test.py does: preprocessing, tensorrt_llm, postprocessing; then the ensemble."""
    before = unary(grpc, "preprocessing", QUERY=PROMPT, REQUEST_OUTPUT_LEN=8).arrays
    (tokens,) = ask(
        grpc,
        "tensorrt_llm",
        input_ids=before["INPUT_ID"],
        input_lengths=before["REQUEST_INPUT_LEN"],
        request_output_len=before["REQUEST_OUTPUT_LEN"],
        decoder_input_ids=before["DECODER_INPUT_ID"],
        stop_words_list=before["STOP_WORDS_IDS"],
        bad_words_list=before["BAD_WORDS_IDS"],
        embedding_bias=before["EMBEDDING_BIAS"],
        end_id=before["OUT_END_ID"],
        pad_id=before["OUT_PAD_ID"],
    )
    assert next(iter(tokens.arrays)) == "output_ids"
    assert tokens.arrays["output_ids"].ndim == 3
    assert tokens.arrays["output_ids"].shape[2] == tokens.arrays["sequence_length"][0][0]
    after = unary(
        grpc,
        "postprocessing",
        TOKENS_BATCH=tokens.arrays["output_ids"],
        SEQUENCE_LENGTH=tokens.arrays["sequence_length"],
    )
    (whole,) = ask(grpc, "ensemble", text_input=PROMPT, max_tokens=8)
    assert after.arrays["OUTPUT"].tolist() == whole.arrays["text_output"].tolist()


def test_drafts_of_the_client_change_no_answer(grpc: str) -> None:
    """What inflight_batcher_llm_client.py --draft-tokens-csv sends: tokens, right or wrong, that the answer may begin with."""
    asked: dict[str, Any] = {"text_input": PROMPT, "max_tokens": 8, "exclude_input_in_output": True}
    (plain,) = ask(grpc, "tensorrt_llm", max_draft_tokens=0, **asked)
    answer = plain.arrays["output_ids"].reshape(-1).tolist()
    for draft in (answer, [*answer[:3], answer[0] + 1], [7] * 100):
        (reply,) = ask(grpc, "tensorrt_llm", draft_input_ids=draft, return_perf_metrics=True, **asked)
        arrays = reply.arrays
        assert arrays["output_ids"].reshape(-1).tolist() == answer
        assert 0 <= arrays["total_accepted_draft_tokens"][0][0] <= arrays["total_draft_tokens"][0][0]


def test_speculation_through_bls_takes_the_contracts_name(grpc: str) -> None:
    asked: dict[str, Any] = {"text_input": PROMPT, "max_tokens": 8}
    texts = {ask(grpc, "tensorrt_llm_bls", num_draft_tokens=most, **asked)[0].text for most in (0, 5)}
    assert texts == {ask(grpc, "tensorrt_llm_bls", **asked)[0].text}
    status, message = refusal(grpc, "tensorrt_llm_bls", num_draft_tokens=0, drafters=["suffix"], **asked)
    assert status is StatusCode.INVALID_ARG
    assert "contradicts num_draft_tokens, which is 0" in message
    status, message = refusal(grpc, "tensorrt_llm_bls", use_draft_logits=True, num_draft_tokens=5, **asked)
    assert status is StatusCode.INVALID_ARG
    assert "use_draft_logits is True: drafts are accepted only where the model itself draws" in message


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_generate_and_generate_stream(triton: TritonServer, grpc: str, model: str) -> None:
    whole = generate(triton, model, text_input=PROMPT, max_tokens=4)
    assert whole.status_code == 200
    assert whole.json()["text_output"].startswith(PROMPT + ANSWER)

    streamed = generate(
        triton, model, "generate_stream", text_input=PROMPT, max_tokens=4, stream=True, max_draft_tokens=0
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.text.count("data: ") >= 2

    refused = generate(triton, model, text_input=PROMPT, max_tokens=0)
    assert refused.status_code == 400
    assert "max_tokens is 0: must be at least 1" in refused.json()["error"]


def test_rows_and_sequences_are_told_apart(grpc: str) -> None:
    replies = ask(
        grpc,
        "tensorrt_llm",
        text_input=np.array([[PROMPT.encode()], [b"Once upon a time"]], np.object_),
        max_tokens=np.array([[3], [5]], np.int32),
        num_return_sequences=np.array([[2], [2]], np.int32),
        top_p=np.array([[0.9], [0.9]], np.float32),
        seed=np.array([[1], [1]], np.uint64),
        exclude_input_in_output=np.array([[True], [True]]),
        end_id=np.array([[-1], [-1]], np.int32),
    )
    lengths = {
        (int(reply.arrays["batch_index"][0][0]), int(reply.arrays["sequence_index"][0][0])): int(
            reply.arrays["sequence_length"][0][0]
        )
        for reply in replies
    }
    assert lengths == {(0, 0): 3, (0, 1): 3, (1, 0): 5, (1, 1): 5}
    assert [reply.is_final for reply in replies] == [False, False, False, True]


@pytest.mark.parametrize("model", TEXT_MODELS)
@pytest.mark.parametrize("is_streaming", [False, True])
def test_all_beams_come_in_one_response(grpc: str, model: str, is_streaming: bool) -> None:
    asked: dict[str, Any] = {"text_input": PROMPT, "max_tokens": 6, "beam_width": 3, "return_log_probs": True}
    (reply,) = ask(grpc, model, stream=is_streaming, length_penalty=1.0, **asked)
    texts = [text.decode() for text in reply.arrays["text_output"].tolist()]
    assert len(set(texts)) == 3
    assert any(ANSWER in text for text in texts)
    assert all(text.startswith(PROMPT) != is_streaming for text in texts)
    assert reply.arrays["cum_log_probs"].shape == (1, 3)
    assert reply.arrays["output_log_probs"].shape[:2] == (1, 3)
    lengths = [int(length) for length in np.count_nonzero(reply.arrays["output_log_probs"][0], axis=1)]
    scores = reply.arrays["cum_log_probs"][0] / (np.array(lengths) + (np.array(lengths) < 6))
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_beams_of_the_token_door(grpc: str) -> None:
    """What inflight_batcher_llm_client.py --beam-width sends."""
    (reply,) = ask(
        grpc, "tensorrt_llm", input_ids=[504, 3575, 282, 4649, 314], request_output_len=4, beam_width=2, end_id=-1,
        pad_id=0, runtime_top_k=1, runtime_top_p=0.0, temperature=1.0, streaming=False, len_penalty=1.0,
        early_stopping=False, exclude_input_in_output=True,
    )  # fmt: skip
    assert next(iter(reply.arrays)) == "output_ids"
    assert reply.arrays["output_ids"].shape == (1, 2, 4)
    assert reply.arrays["sequence_length"].tolist() == [[4, 4]]


def test_a_cancelled_beam_search_leaves_nothing(triton: TritonServer, grpc: str) -> None:
    asked: dict[str, Any] = {**LONG, "beam_width": 4}
    running = threading.Thread(target=lambda: ask(grpc, "tensorrt_llm", request_id="beams", **asked))
    running.start()
    wait_for_active(triton.endpoints.metrics, 4)
    ask(grpc, "tensorrt_llm", request_id="beams", stop=True)
    running.join()


def test_everything_a_client_may_ask_to_see(grpc: str) -> None:
    (reply,) = ask(
        grpc,
        "tensorrt_llm",
        text_input=PROMPT,
        max_tokens=4,
        exclude_input_in_output=True,
        return_log_probs=True,
        return_perf_metrics=True,
        return_num_input_tokens=True,
        return_num_output_tokens=True,
        return_finish_reason=True,
        num_log_probs=2,
        num_prompt_log_probs=0,
    )
    arrays = reply.arrays
    assert arrays["output_log_probs"].shape == (1, 1, 4)
    assert np.isclose(arrays["cum_log_probs"][0][0], arrays["output_log_probs"].sum())
    times = [arrays[f"{name}_time_ns"][0][0] for name in ("arrival", "first_scheduled", "first_token", "last_token")]
    assert times == sorted(times)
    assert arrays["kv_cache_alloc_total_blocks"][0][0] >= 1
    assert (arrays["num_input_tokens"][0][0], arrays["num_output_tokens"][0][0]) == (5, 4)
    assert arrays["finish_reason"].tolist() == [b"length"]
    assert b'"top": [[' in arrays["top_log_probs"][0]
    assert arrays["prompt_log_probs"][0].startswith(b"[null, ")


BAD: dict[str, dict[str, Any]] = {
    "text_input is ''": {"text_input": ""},
    "text_input is b": {"text_input": [b"\xff\xfe"]},
    "number of tokens of text_input": {"text_input": "word " * 20_000},
    "max_tokens is -3": {"max_tokens": -3},
    "max_tokens is 1000000": {"max_tokens": 1_000_000},
    "temperature is nan": {"temperature": float("nan")},
    "temperature is -1.0": {"temperature": -1.0},
    "top_p is 1.5": {"top_p": 1.5},
    "top_k is -1": {"top_k": -1},
    "min_tokens is 9": {"min_tokens": 9},
    "beam_width is 11": {"beam_width": 11},
    "return_generation_logits is 'given'": {"beam_width": 2, "return_generation_logits": True},
    "lora_name is 'unknown'": {"lora_name": "unknown"},
    "drafters is 'medusa'": {"drafters": ["medusa"]},
    "this engine was built with": {"drafters": ["mtp"]},
    "max_draft_tokens is -1": {"max_draft_tokens": -1},
    "bias_words": {"embedding_bias_words": ["a"], "embedding_bias_weights": [float("nan")]},
}


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_bad_input_is_named_while_others_stream_on(grpc: str, model: str) -> None:
    undisturbed = stream(grpc, "tensorrt_llm", **LONG)
    next(undisturbed)
    for named, wrong in BAD.items():
        status, message = refusal(grpc, model, **({"text_input": PROMPT, "max_tokens": 4} | wrong))
        assert status is StatusCode.INVALID_ARG, message
        assert named in message
        assert "/" not in message.replace(" / ", "")  # no path of ours
    assert len(list(itertools.islice(undisturbed, 3))) == 3
    undisturbed.close()


def test_bad_input_of_the_token_door(grpc: str) -> None:
    for named, wrong in {
        "input_ids is 4000000": {"input_ids": [4_000_000]},
        "input_ids is -1": {"input_ids": [-1]},
        "request_output_len is 0": {"request_output_len": 0},
        "stop_words_list": {"stop_words_list": np.array([[[1, 2], [9, -1]]], np.int32)},
    }.items():
        status, message = refusal(grpc, "tensorrt_llm", **({"input_ids": [1], "request_output_len": 4} | wrong))
        assert status is StatusCode.INVALID_ARG
        assert named in message


def test_a_wrong_type_or_shape_is_refused_with_the_tensors_name(grpc: str) -> None:
    for wrong in (np.array([[4]], np.int64), np.array([[4, 5]], np.int32), np.array([4], np.int32)):
        with pytest.raises(InferenceServerException, match="'max_tokens'"):
            ask(grpc, "tensorrt_llm", text_input=PROMPT, max_tokens=wrong)


@pytest.mark.parametrize("model", ["tensorrt_llm", "tensorrt_llm_bls"])
def test_a_cancelled_stream_gives_its_blocks_back(triton: TritonServer, grpc: str, model: str) -> None:
    metrics = triton.endpoints.metrics
    running = stream(grpc, model, **LONG)
    next(running)
    eventually(lambda: kv_blocks(metrics, "used") > 0, "blocks in use")
    running.close()
    wait_until_idle(metrics)


@pytest.mark.parametrize("model", ["tensorrt_llm", "ensemble"])
def test_stop_ends_a_request_by_its_id(grpc: str, model: str) -> None:
    running = stream(grpc, model, request_id="endless", **LONG)
    next(running)
    (stopped,) = ask(grpc, "tensorrt_llm", request_id="endless", stop=True)
    assert not stopped.arrays
    *_, last = running
    assert last.is_final
    assert not last.arrays


def test_stop_needs_an_id(grpc: str) -> None:
    status, message = refusal(grpc, "tensorrt_llm", stop=True)
    assert status is StatusCode.INVALID_ARG
    assert "a request id must be provided" in message


def test_a_client_that_hangs_up_over_http_leaves_nothing(triton: TritonServer, grpc: str) -> None:
    url = f"{triton.endpoints.http}/v2/models/tensorrt_llm/generate_stream"
    with httpx.stream("POST", url, json=LONG, timeout=120, trust_env=False) as response:
        lines = response.iter_lines()  # kept: dropping the iterator would hang up
        next(lines)
        wait_for_active(triton.endpoints.metrics, 1)
    wait_until_idle(triton.endpoints.metrics)


def test_a_timeout_ends_the_request(grpc: str) -> None:
    status, message = refusal(grpc, "tensorrt_llm", timeout=300_000, **LONG)
    assert status is StatusCode.CANCELLED, message


def test_metrics(triton: TritonServer, grpc: str) -> None:
    url = triton.endpoints.metrics
    labels = {"model": "tensorrt_llm", "version": "1"}
    before = Metrics.read(url)
    ask(grpc, "tensorrt_llm", text_input=PROMPT, max_tokens=4, stream=True, end_id=-1, max_draft_tokens=0)
    after = Metrics.read(url)
    for name, added in {
        "nv_llm_input_token_len_sum": 5,
        "nv_llm_output_token_len_sum": 4,
        "trierarch_time_to_first_token_seconds_count": 1,
        "trierarch_queue_time_seconds_count": 1,
        "trierarch_inter_token_latency_seconds_count": 3,
    }.items():
        eventually(
            lambda name=name, added=added: (
                Metrics.read(url).value(name, **labels) - before.value(name, **labels) == added
            ),
            f"{name} up by {added}",
        )
    assert requests(url, "max") > 0
    assert after.value("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="reused", **labels) >= 0
    assert after.value("nv_trt_llm_general_metrics", general_type="iteration_counter", **labels) > 0
    assert after.value("trierarch_kv_cache_slots", slot_type="waste", **labels) >= 0


def test_what_was_guessed_is_counted(triton: TritonServer, grpc: str) -> None:
    url = triton.endpoints.metrics

    def count(name: str, page: Metrics | None = None, **labels: str) -> float:
        page = page or Metrics.read(url)
        return page.value(f"trierarch_{name}_total", model="tensorrt_llm", version="1", **labels)

    names = ("drafts", "draft_tokens", "accepted_draft_tokens")
    before = {name: count(name, drafter="client") for name in names}
    asked: dict[str, Any] = {"text_input": PROMPT, "max_tokens": 8, "end_id": -1, "exclude_input_in_output": True}
    (plain,) = ask(grpc, "tensorrt_llm", max_draft_tokens=0, **asked)
    answer = plain.arrays["output_ids"].reshape(-1).tolist()

    def all_right() -> bool:
        # How far a guess is followed is the policy's to say, and it has to learn what a step costs.
        ask(grpc, "tensorrt_llm", draft_input_ids=answer, drafters=["suffix"], **asked)
        page = Metrics.read(url)
        drafts, drafted, accepted = (count(name, page, drafter="client") - before[name] for name in names)
        return drafted == accepted >= drafts > 0

    eventually(all_right, "guesses of the client counted, all of them right")
    assert (
        count("draft_tokens_by_position", position="0") >= count("accepted_draft_tokens_by_position", position="0") > 0
    )
    assert count("steps", step_type="speculated") > 0


def test_many_clients_at_once_leave_nothing_behind(triton: TritonServer, grpc: str) -> None:
    """Streams of every door at once, some cut off: what made the server's process crash or hang while this was built."""
    texts: dict[int, str] = {}

    def read(index: int) -> None:
        model = TEXT_MODELS[index % 3]
        replies = stream(grpc, model, text_input=PROMPT, max_tokens=24, stream=True)
        if index % 4 == 3 and model != "ensemble":
            next(replies)
            replies.close()
        else:
            texts[index] = text_of(list(replies))

    threads = [threading.Thread(target=read, args=(index,)) for index in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) >= 16
    assert len(set(texts.values())) == 1
    assert triton.is_running


@pytest.fixture(scope="module")
def unary_triton(demo_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server whose models are not decoupled, of a repository that stands alone."""
    repository = tmp_path_factory.mktemp("unary") / "repository"
    compose(demo_engine, repository, ComposeOptions(decoupled=False, copy=True, exclude_input_in_output=True))
    with serving(repository, ServerConfig(ports=Ports(http=0, grpc=0, metrics=0), drain_timeout=5)) as server:
        yield server
        server.stop()


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_unary_clients_are_served_without_decoupling(unary_triton: TritonServer, model: str) -> None:
    url = unary_triton.endpoints.grpc
    reply = unary(url, model, request_id="u", text_input=PROMPT, max_tokens=4)
    assert reply.text.startswith(ANSWER)
    assert reply.request_id == "u"
    (streamed,) = ask(url, model, text_input=PROMPT, max_tokens=4)  # over a stream, as the real client always does
    assert streamed.text == reply.text
    status, message = refusal(url, model, text_input=PROMPT, max_tokens=4, stream=True)
    assert status is StatusCode.INVALID_ARG
    assert "stream is True: this model is not decoupled" in message
