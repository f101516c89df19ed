"""Guides, logits, and the tensors of llmapi and of the vLLM backend, through a real Triton over the demo engine."""

from __future__ import annotations

import itertools
import json
import queue
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from support.metrics import wait_for_active, wait_until_idle
from support.triton_requests import ask, refusal, stream
from trierarch.ensembles.compose import ComposeOptions, compose
from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.serving import serving
from trierarch.orchestrator.triton_server import TritonServer
from trierarch.python_backend.triton.status import StatusCode

MODELS = ["tensorrt_llm", "ensemble", "tensorrt_llm_bls"]
PROMPT = "The capital of France is"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
}
GUIDED = {
    "text_input": "Describe a person as JSON: ",
    "max_tokens": 100,
    "exclude_input_in_output": True,
    "guided_decoding_guide_type": "json_schema",
    "guided_decoding_guide": json.dumps(SCHEMA),
}


@pytest.fixture(scope="module")
def server(demo_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The five models, `chat` with llmapi's tensors, and `talk` with the vLLM backend's."""
    repository = tmp_path_factory.mktemp("repository") / "models"
    compose(demo_engine, repository, ComposeOptions(llmapi="chat", vllm="talk"))
    with serving(repository, ServerConfig(ports=Ports(http=0, grpc=0, metrics=0), drain_timeout=5)) as server:
        yield server
        server.stop()


@pytest.fixture
def grpc(server: TritonServer) -> Iterator[str]:
    wait_until_idle(server.endpoints.metrics)
    yield server.endpoints.grpc
    wait_until_idle(server.endpoints.metrics)


@pytest.mark.parametrize("model", MODELS)
def test_an_output_obeys_its_schema(grpc: str, model: str) -> None:
    (whole,) = ask(grpc, model, return_finish_reason=True, **GUIDED)
    assert whole.arrays["finish_reason"].tolist() == [b"stop"]
    jsonschema.validate(json.loads(whole.text), SCHEMA)
    pieces = ask(grpc, model, stream=True, max_draft_tokens=0, **GUIDED)
    assert "".join(reply.text for reply in pieces if reply.arrays) == whole.text
    (plain,) = ask(grpc, model, **{**GUIDED, "guided_decoding_guide_type": "", "guided_decoding_guide": ""})
    assert plain.text != whole.text


def test_guides_side_by_side_at_high_temperature(grpc: str) -> None:
    phone = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": r"\(\d{3}\) \d{3}-\d{4}"}
    yes = {
        "guided_decoding_guide_type": "ebnf_grammar",
        "guided_decoding_guide": 'root ::= ("no, "){0,2} word\nword ::= "yes" | "no"',
    }

    def answer(seed: int) -> list[str]:
        drawn = {"top_k": 0, "temperature": 1.8, "seed": seed}
        guides = ({}, phone, yes)
        return [ask(grpc, "tensorrt_llm", **{**GUIDED, **drawn, **guide})[0].text for guide in guides]

    with ThreadPoolExecutor(4) as threads:
        for person, number, word in threads.map(answer, range(4)):
            jsonschema.validate(json.loads(person), SCHEMA)
            assert re.fullmatch(phone["guided_decoding_guide"], number)
            assert re.fullmatch("(no, ){0,2}(yes|no)", word)


def test_a_bad_guide_is_an_invalid_argument(grpc: str) -> None:
    for model in MODELS:
        sent = {"text_input": "a", "max_tokens": 4, "guided_decoding_guide_type": "regex"}
        status, message = refusal(grpc, model, **sent, guided_decoding_guide="(a")
        assert status is StatusCode.INVALID_ARG
        assert "guided_decoding_guide is '(a': Regex parsing error at position 3" in message


def test_others_stream_on_while_a_grammar_is_too_much(server: TritonServer, grpc: str) -> None:
    rules = "\n".join(f'r{i} ::= r{i + 1} r{i + 1} | "a"' for i in range(2000))
    endless = {
        "guided_decoding_guide_type": "ebnf_grammar",
        "guided_decoding_guide": f'root ::= r0\n{rules}\nr2000 ::= "b"',
    }
    with ThreadPoolExecutor(1) as threads:
        refused = threads.submit(refusal, grpc, "tensorrt_llm", text_input="a", max_tokens=4, **endless)
        wait_for_active(server.endpoints.metrics, 1)
        (reply,) = ask(grpc, "tensorrt_llm", text_input=PROMPT, max_tokens=4)
        assert not refused.done()
        (guided,) = ask(grpc, "tensorrt_llm", **GUIDED)
        jsonschema.validate(json.loads(guided.text), SCHEMA)
        status, message = refused.result(timeout=60)
    assert reply.text.startswith(PROMPT)
    assert status is StatusCode.INVALID_ARG
    assert "it takes longer than 10 s to compile" in message


@pytest.mark.parametrize("model", MODELS)
def test_logits(grpc: str, model: str) -> None:
    asked = {"text_input": PROMPT, "max_tokens": 5, "return_context_logits": True, "return_generation_logits": True}
    sent: dict[str, Any] = {**asked, "return_log_probs": True, "return_num_input_tokens": True, "num_log_probs": 0}
    for _ in range(2):  # the second time the prompt is in the prefix cache
        (whole,) = ask(grpc, model, exclude_input_in_output=True, **sent)
        context, generated = whole.arrays["context_logits"], whole.arrays["generation_logits"]
        num_input_tokens = int(whole.arrays["num_input_tokens"][0][0])
        assert context.shape[:2] == (1, num_input_tokens)
        assert generated.shape == (1, 1, 5, context.shape[2])
        assert context.dtype == generated.dtype == np.float32
        chosen = [entry["token_id"] for entry in json.loads(whole.arrays["top_log_probs"][0])]
        assert generated[0, 0].argmax(1).tolist() == chosen
        np.testing.assert_array_equal(context[0, -1], generated[0, 0, 0])
        normalizer = np.log(np.exp(generated[0, 0].astype(np.float64)).sum(1))
        logprobs = generated[0, 0, range(5), chosen] - normalizer
        np.testing.assert_allclose(whole.arrays["output_log_probs"][0, 0], logprobs, atol=1e-4)
    pieces = [reply.arrays for reply in ask(grpc, model, stream=True, max_draft_tokens=0, **sent) if reply.arrays]
    streamed = np.concatenate([each["generation_logits"] for each in pieces if "generation_logits" in each], 2)
    np.testing.assert_array_equal(streamed, generated)
    assert len(pieces) > 1
    assert ["context_logits" in each for each in pieces] == [True] + [False] * (len(pieces) - 1)
    np.testing.assert_array_equal(pieces[0]["context_logits"], context)


def test_logits_that_are_too_many_are_refused_with_the_numbers(grpc: str) -> None:
    status, message = refusal(grpc, "tensorrt_llm", text_input="a", max_tokens=5000, return_generation_logits=True)
    assert status is StatusCode.INVALID_ARG
    assert re.search(r"5000 tokens of 196608 bytes make 983040000 bytes of logits, at most 536870912", message)


def llmapi(url: str, request_id: str = "", **values: Any) -> list[dict[str, Any]]:
    """Responses of `chat`."""
    return unbatched(url, "chat", values, request_id)


def vllm(url: str, parameters: dict[str, Any] | None = None, **values: Any) -> list[dict[str, Any]]:
    """Responses of `talk`."""
    said = {} if parameters is None else {"sampling_parameters": json.dumps(parameters)}
    return unbatched(url, "talk", values | said)


def unbatched(url: str, model: str, values: dict[str, Any], request_id: str = "") -> list[dict[str, Any]]:
    """Responses of a model to tensors without a batch dimension."""
    replies: list[dict[str, Any]] = []
    inputs = []
    for name, value in values.items():
        array = np.array([value.encode()] if isinstance(value, str) else [value])
        array = array.astype({"b": np.bool_, "i": np.int32, "f": np.float32, "S": np.object_}[array.dtype.kind])
        tensor = triton_grpc.InferInput(
            name, list(array.shape), {"b": "BOOL", "i": "INT32", "f": "FP32", "O": "BYTES"}[array.dtype.kind]
        )
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)

    arrivals: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with triton_grpc.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: arrivals.put((result, error)))
        client.async_stream_infer(model, inputs, request_id=request_id, enable_empty_final_response=True)
        while True:
            result, error = arrivals.get(timeout=120)
            if error is not None:
                client.stop_stream(cancel_requests=True)
                raise error
            response = result.get_response()
            if response.outputs:
                replies.append({output.name: result.as_numpy(output.name) for output in response.outputs})
            if response.parameters["triton_final_response"].bool_param:
                client.stop_stream()
                return replies


def test_llmapi_answers_in_its_own_tensors(grpc: str) -> None:
    (whole,) = llmapi(
        grpc,
        text_input=PROMPT,
        sampling_param_max_tokens=6,
        return_finish_reason=True,
        return_stop_reason=True,
        return_cumulative_logprob=True,
        sampling_param_return_perf_metrics=True,
    )
    assert whole["text_output"][0].decode().startswith(PROMPT + " Paris")
    assert whole["finish_reason"].tolist() == [b"length"]
    assert whole["stop_reason"].tolist() == [b"None"]
    assert whole["cumulative_logprob"].shape == (1,)
    assert whole["cumulative_logprob"][0] < 0
    assert whole["first_token_time_ns"].dtype == np.int64
    assert whole["kv_cache_hit_rate"].dtype == np.float32
    fresh = "Once upon a time there was"  # what was answered before may come in one piece, guessed ahead
    pieces = llmapi(grpc, text_input=fresh, sampling_param_max_tokens=6, streaming=True)
    (whole,) = llmapi(grpc, text_input=fresh, sampling_param_max_tokens=6)
    texts = [piece["text_output"][0].decode() for piece in pieces]
    assert len(texts) > 1
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert fresh + texts[-1] == whole["text_output"][0].decode()
    (stopped,) = llmapi(
        grpc, text_input=PROMPT, sampling_param_max_tokens=9, sampling_param_stop=" Paris", return_stop_reason=True
    )
    assert stopped["text_output"].tolist() == [PROMPT.encode()]
    assert stopped["stop_reason"].tolist() == [b" Paris"]


def test_llmapi_over_http_is_typed(server: TritonServer, grpc: str) -> None:
    body = {"text_input": PROMPT, "sampling_param_max_tokens": 2, "sampling_param_return_perf_metrics": True}
    answer = httpx.post(
        f"{server.endpoints.http}/v2/models/chat/generate", json=body, timeout=120, trust_env=False
    ).json()
    assert answer["text_output"].startswith(PROMPT)
    assert isinstance(answer["acceptance_rate"], float)


def test_llmapi_refuses_by_its_own_names(grpc: str) -> None:
    for sent, says in (
        ({"lora_path": "/etc"}, "lora_path is b'/etc': no path is taken from a client"),
        ({"sampling_param_max_tokens": 0}, "sampling_param_max_tokens is 0: must be at least 1"),
        ({"lora_name": "nobody"}, "lora_name is 'nobody'"),
    ):
        with pytest.raises(InferenceServerException, match=re.escape(says)):
            llmapi(grpc, text_input=PROMPT, **sent)


def test_llmapi_stops_a_request_with_an_error_on_both_sides(server: TritonServer, grpc: str) -> None:
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(
            llmapi, grpc, "mine", text_input=PROMPT, sampling_param_max_tokens=5000, streaming=True
        )
        wait_for_active(server.endpoints.metrics, 1)
        with pytest.raises(InferenceServerException, match="Request cancelled by client"):
            llmapi(grpc, "mine", text_input="", stop=True)
        with pytest.raises(InferenceServerException, match="Request cancelled by client"):
            running.result(timeout=60)
    with pytest.raises(InferenceServerException, match="Request cancelled by client"):
        llmapi(grpc, "unknown", text_input="", stop=True)


GREEDY = {"temperature": "0", "top_p": "1"}


def test_the_vllm_backends_tensors(grpc: str) -> None:
    (whole,) = vllm(grpc, {**GREEDY, "max_tokens": "6"}, text_input=PROMPT)
    assert whole["text_output"][0].decode().startswith(PROMPT + " Paris")
    fresh = "In the middle of the night there"
    flags = dict.fromkeys(("return_finish_reason", "return_num_output_tokens", "return_logprobs"), True)
    pieces = vllm(grpc, {**GREEDY, "logprobs": 1}, text_input=fresh, stream=True, **flags)
    (whole,) = vllm(grpc, GREEDY, text_input=fresh, exclude_input_in_output=True)
    assert len(pieces) > 1
    assert b"".join(piece["text_output"][0] for piece in pieces) == whole["text_output"][0]
    assert [piece["finish_reason"][0] for piece in pieces] == [b"None"] * (len(pieces) - 1) + [b"length"]
    assert sum(int(piece["num_output_tokens"][0]) for piece in pieces) == 16
    tokens = [token for piece in pieces for token in json.loads(piece["logprobs"][0])]
    assert "".join(next(iter(token.values()))["decoded_token"] for token in tokens).encode() == whole["text_output"][0]
    chosen = {"structured_outputs": {"choice": ["Positive", "Negative"]}}
    (guided,) = vllm(grpc, {**GREEDY, **chosen}, text_input="Good news. Mood: ", exclude_input_in_output=True)
    assert guided["text_output"][0] in (b"Positive", b"Negative")


def test_the_vllm_backends_requests_over_http(server: TritonServer, grpc: str) -> None:
    """As its README sends them: parameters beside the tensors, in the object that Triton's generate extension takes."""
    body = {"text_input": PROMPT, "parameters": {"stream": False, "temperature": 0, "max_tokens": 3}}
    url = f"{server.endpoints.http}/v2/models/talk/generate"
    assert httpx.post(url, json=body, timeout=120, trust_env=False).json()["text_output"].startswith(PROMPT + " Paris")
    bad = httpx.post(url, json={"text_input": PROMPT, "temprature": 0}, timeout=120, trust_env=False)
    assert bad.status_code == 400
    assert "sampling_parameters.temprature is 0" in bad.json()["error"]


def test_the_vllm_backends_refusals(grpc: str) -> None:
    for parameters, says in (
        ({"max_tokens": 0}, "sampling_parameters.max_tokens is 0: must be at least 1"),
        ({"lora_name": "bactrian"}, "sampling_parameters.lora_name is 'bactrian'"),
        ({"n": 3}, "sampling_parameters.n is 3"),
    ):
        with pytest.raises(InferenceServerException, match=re.escape(says)):
            vllm(grpc, parameters, text_input=PROMPT)


def test_guided_beams(grpc: str) -> None:
    guide = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": " (Paris|Rome|Lyon|Nice|Bonn)"}
    (answer,) = ask(
        grpc, "tensorrt_llm", text_input=PROMPT, max_tokens=8, beam_width=2, exclude_input_in_output=True, **guide
    )
    texts = [text.decode() for text in answer.arrays["text_output"]]
    assert texts[0] == " Paris"
    assert len(set(texts)) == 2
    assert all(re.fullmatch(guide["guided_decoding_guide"], text) for text in texts)


def test_cancelling_while_a_guide_is_followed_leaves_nothing_behind(grpc: str) -> None:
    for reply in stream(grpc, "tensorrt_llm", **{**GUIDED, "stream": True, "max_tokens": 90, "max_draft_tokens": 0}):
        if reply.arrays:
            break
    deadline = time.monotonic() + 60
    (again,) = ask(grpc, "tensorrt_llm", **GUIDED)
    assert time.monotonic() < deadline
    jsonschema.validate(json.loads(again.text), SCHEMA)
