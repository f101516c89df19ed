"""OpenAI's own client through the gateway to a real Triton."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.adapted_engine import adapted_engine
from support.eventually import eventually
from support.gateway import gateway_before, openai_client, whole_page
from support.metrics import wait_for_active, wait_until_idle
from support.serve_process import FREE_PORTS, TRIERARCH, serve
from support.triton_requests import ask
from trierarch.builder.manifest import MANIFEST_NAME
from trierarch.orchestrator.client import TritonClient
from trierarch.orchestrator.gateway.gateway_server import GatewayServer
from trierarch.orchestrator.ports import Ports
from trierarch.orchestrator.prompt import Prompt
from trierarch.orchestrator.server_config import ServerConfig
from trierarch.orchestrator.serving import serving
from trierarch.orchestrator.triton_server import TritonServer

MODEL = "tensorrt_llm"
QUESTION = "What is the capital of France?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
GREEDY: Any = {"model": MODEL, "temperature": 0}
LONG: Any = {"prompt": "1 2 3 4 5 6 7 8 9 10 11 12", "max_tokens": 2000, **GREEDY}
"""The demo model counts on, for longer than any test lasts."""


@pytest.fixture(scope="module")
def gateway(triton: TritonServer) -> Iterator[GatewayServer]:
    with gateway_before(triton) as server:
        yield server


@pytest.fixture(scope="module")
def ai(gateway: GatewayServer) -> Iterator[openai.OpenAI]:
    with openai_client(gateway.url) as client:
        yield client


def test_a_chat_is_the_models_answer_streamed_or_not(ai: openai.OpenAI, client: TritonClient) -> None:
    (direct,) = client.complete(Prompt(text=QUESTION, max_tokens=24, chat=True))
    whole = ai.chat.completions.create(messages=MESSAGES, max_tokens=24, **GREEDY)
    assert whole.choices[0].message.content == direct.text
    assert whole.choices[0].finish_reason == direct.finish_reason
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == direct.num_input_tokens
    assert whole.usage.completion_tokens == direct.num_output_tokens
    chunks = list(
        ai.chat.completions.create(
            messages=MESSAGES, max_tokens=24, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == direct.text
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage and chunks[-1].usage.prompt_tokens_details}
    )


def test_a_chat_without_a_bound_fills_what_the_prompt_leaves(ai: openai.OpenAI, triton: TritonServer) -> None:
    with ai.chat.completions.create(
        messages=MESSAGES, stream=True, extra_body={"ignore_eos": True}, **GREEDY
    ) as stream:
        assert next(iter(stream)).choices
    wait_until_idle(triton.endpoints.metrics)


def test_completions_of_text_and_of_its_tokens_are_the_same(ai: openai.OpenAI, gateway: GatewayServer) -> None:
    asked = {"model": MODEL, "prompt": QUESTION}
    tokens = httpx.post(f"{gateway.url}/tokenize", json=asked, trust_env=False, timeout=60).json()["tokens"]
    by_text = ai.completions.create(prompt=[QUESTION, "1 2 3"], max_tokens=6, **GREEDY)
    by_tokens = ai.completions.create(prompt=tokens, max_tokens=6, echo=True, **GREEDY)
    assert by_tokens.choices[0].text == QUESTION + by_text.choices[0].text
    assert by_text.choices[1].text.startswith(" 4")
    back = httpx.post(f"{gateway.url}/detokenize", json={"model": MODEL, "tokens": tokens}, trust_env=False, timeout=60)
    assert back.json()["prompt"] == QUESTION


def test_a_chats_tokens_are_its_prompts(ai: openai.OpenAI, gateway: GatewayServer) -> None:
    asked = {"model": MODEL, "messages": MESSAGES}
    tokens = httpx.post(f"{gateway.url}/tokenize", json=asked, trust_env=False, timeout=60).json()["tokens"]
    of_chat = ai.chat.completions.create(messages=MESSAGES, max_tokens=8, **GREEDY)
    of_tokens = ai.completions.create(prompt=tokens, max_tokens=8, **GREEDY)
    assert of_tokens.choices[0].text == of_chat.choices[0].message.content
    assert of_chat.usage is not None
    assert len(tokens) == of_chat.usage.prompt_tokens


def test_log_probs_are_of_the_tokens_that_were_drawn(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.create(messages=MESSAGES, max_tokens=8, logprobs=True, top_logprobs=3, **GREEDY)
    (choice,) = answer.choices
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert answer.usage is not None
    assert len(content) == answer.usage.completion_tokens
    assert "".join(item.token for item in content) == choice.message.content
    for item in content:
        assert len(item.top_logprobs) == 3
        assert item.top_logprobs[0].token == item.token  # greedy
        assert item.logprob <= 0
    streamed = ai.chat.completions.create(messages=MESSAGES, max_tokens=8, logprobs=True, stream=True, **GREEDY)
    told = [chunk.choices[0].logprobs for chunk in streamed]
    tokens = [item.token for logprobs in told if logprobs is not None for item in logprobs.content or []]
    assert tokens == [item.token for item in content]
    echoed = ai.completions.create(prompt=QUESTION, max_tokens=4, logprobs=2, echo=True, **GREEDY).choices[0]
    assert echoed.logprobs is not None
    assert "".join(echoed.logprobs.tokens or []) == echoed.text


def test_seeded_answers_come_again_and_differ(ai: openai.OpenAI) -> None:
    def draw() -> list[str | None]:
        answer = ai.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=16, n=3, seed=7, temperature=1.5, top_p=0.9
        )
        return [choice.message.content for choice in answer.choices]

    first = draw()
    assert draw() == first
    assert len(set(first)) > 1


def test_biases_stops_and_penalties(ai: openai.OpenAI, gateway: GatewayServer) -> None:
    plain = ai.completions.create(prompt="The capital of France is", max_tokens=4, **GREEDY).choices[0].text
    assert "Paris" in plain
    asked = {"model": MODEL, "prompt": " Paris"}
    (paris,) = httpx.post(f"{gateway.url}/tokenize", json=asked, trust_env=False, timeout=60).json()["tokens"]
    banned = ai.completions.create(
        prompt="The capital of France is", max_tokens=4, logit_bias={str(paris): -100}, **GREEDY
    )
    assert "Paris" not in banned.choices[0].text
    stopped = ai.completions.create(prompt="1 2 3 4 5", max_tokens=20, stop=[" 8"], **GREEDY).choices[0]
    assert (stopped.text, stopped.finish_reason) == (" 6 7", "stop")
    ai.completions.create(prompt="Hi", max_tokens=2, presence_penalty=1, frequency_penalty=-1, **GREEDY)


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "maximum": 99}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


def guided(ask: Any) -> Any:
    """What `ask` gives; skipped where the engine guides no decoding."""
    try:
        return ask()
    except openai.BadRequestError as error:
        if "no guided decoding" not in str(error):
            raise
        pytest.skip("this engine guides no decoding")


def test_an_answer_by_a_schema(ai: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    answer = guided(
        lambda: ai.chat.completions.create(messages=MESSAGES, max_tokens=64, response_format=wanted, **GREEDY)
    )
    told = json.loads(answer.choices[0].message.content)
    assert set(told) == {"city", "people"}


def test_a_call_that_must_be_made(ai: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}]
    named: Any = {"type": "function", "function": {"name": "look_up"}}
    for choice in (named, "required"):
        answer = guided(
            lambda choice=choice: ai.chat.completions.create(
                messages=MESSAGES, max_tokens=96, tools=tools, tool_choice=choice, **GREEDY
            )
        )
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "look_up"
        assert set(json.loads(call.function.arguments)) == {"city", "people"}


def test_tools_that_may_be_called_leave_text_as_it_is(ai: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}]
    plain = ai.chat.completions.create(messages=MESSAGES, max_tokens=16, **GREEDY).choices[0]
    offered = ai.chat.completions.create(messages=MESSAGES, max_tokens=16, tools=tools, **GREEDY).choices[0]
    assert offered.message.content == plain.message.content  # the demo's template shows no tools
    assert offered.message.tool_calls is None


def test_beams_are_the_models_own_streamed_or_not(ai: openai.OpenAI, triton: TritonServer) -> None:
    asked: Any = {"prompt": QUESTION, "max_tokens": 6, "n": 2, **GREEDY}
    beams: Any = {"use_beam_search": True, "best_of": 3}
    *_, direct = (
        reply
        for reply in ask(
            triton.endpoints.grpc,
            MODEL,
            text_input=QUESTION,
            max_tokens=6,
            beam_width=3,
            num_return_sequences=2,
            len_penalty=1.0,
            early_stopping=False,
            exclude_input_in_output=True,
            return_num_output_tokens=True,
        )
        if reply.arrays
    )
    best = [text.decode() for text in direct.arrays["text_output"]]
    whole = ai.completions.create(extra_body=beams, **asked)
    assert [choice.text for choice in whole.choices] == best
    assert len(set(best)) == 2
    assert whole.usage is not None
    assert whole.usage.completion_tokens == direct.arrays["num_output_tokens"].item()
    chunks = list(ai.completions.create(extra_body=beams, stream=True, **asked))
    for index, text in enumerate(best):
        assert "".join(c.text for chunk in chunks for c in chunk.choices if c.index == index) == text


def test_refusals_are_the_clients_own_errors(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        ai.chat.completions.create(model="nobody", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        ai.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=100_000)
    with pytest.raises(openai.BadRequestError, match="prompt"):
        ai.completions.create(model=MODEL, prompt=[10**6], max_tokens=1)
    with pytest.raises(openai.BadRequestError, match="chat_template_kwargs"):
        ai.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body={"chat_template_kwargs": {"messages": 1}})


def test_embeddings_are_of_the_text_alone_and_of_length_one(ai: openai.OpenAI) -> None:
    texts = ["A cat sat on the mat.", "A kitten lay on the rug.", "Interest rates rose by a quarter of a point."]
    answer = ai.embeddings.create(model=MODEL, input=texts)
    cat, kitten, rates = (np.array(item.embedding) for item in answer.data)
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-5)
    assert cat @ kitten > cat @ rates
    (alone,) = ai.embeddings.create(model=MODEL, input=texts[0], encoding_format="float").data
    np.testing.assert_allclose(alone.embedding, cat, atol=1e-6)
    tokens = ai.completions.create(prompt=texts[0], max_tokens=1, **GREEDY).usage
    assert tokens is not None
    assert ai.embeddings.create(model=MODEL, input=texts[0]).usage.prompt_tokens == tokens.prompt_tokens
    (first,) = ai.embeddings.create(model=MODEL, input=texts[0], dimensions=8).data
    assert np.linalg.norm(first.embedding) == pytest.approx(1, abs=1e-5)


def test_models_are_listed(ai: openai.OpenAI) -> None:
    (model,) = ai.models.list().data
    assert ai.models.retrieve(model.id).id == model.id
    assert ai.completions.create(model=model.id, prompt="Hi", max_tokens=1).model == model.id


def test_a_client_that_hangs_up_gives_the_blocks_back(ai: openai.OpenAI, triton: TritonServer) -> None:
    metrics = triton.endpoints.metrics
    wait_until_idle(metrics)
    with ai.completions.create(stream=True, **LONG) as stream:
        next(iter(stream))
        wait_for_active(metrics, 1)
    wait_until_idle(metrics)


def test_a_client_that_hangs_up_on_a_whole_answer(gateway: GatewayServer, triton: TritonServer) -> None:
    wait_until_idle(triton.endpoints.metrics)
    with httpx.Client(trust_env=False, timeout=60) as transport, pytest.raises(httpx.ReadTimeout):
        transport.post(f"{gateway.url}/v1/completions", json=LONG, timeout=httpx.Timeout(60, read=1.0))
    wait_until_idle(triton.endpoints.metrics)


def test_what_the_models_own_queue_refuses_is_503_with_a_time(demo_engine: Path, tmp_path: Path) -> None:
    """Of an engine that runs one request and lets one wait."""
    engine = tmp_path / "engine"
    shutil.copytree(demo_engine, engine, copy_function=os.link)
    manifest = json.loads((engine / MANIFEST_NAME).read_text())
    manifest["limits"] |= {"max_batch_size": 1, "max_queue_size": 1}
    (engine / MANIFEST_NAME).unlink()  # it is the other engine's too
    (engine / MANIFEST_NAME).write_text(json.dumps(manifest))
    config = ServerConfig(ports=Ports(http=0, grpc=0, metrics=0), drain_timeout=5)
    with serving(engine, config) as triton, gateway_before(triton) as gateway, openai_client(gateway.url) as ai:
        # Past the gateway, which brings no more to a model than that can take.
        direct = TritonClient(triton.endpoints.grpc)
        long = Prompt(text=str(LONG["prompt"]), max_tokens=2000)
        with direct.stream(long) as runs:
            next(iter(runs))  # no more in the queue
            with direct.stream(long):
                wait_for_active(triton.endpoints.metrics, 2)
                with pytest.raises(openai.InternalServerError, match="queue") as refused:
                    ai.completions.create(**LONG)
        assert refused.value.status_code == 503
        assert int(refused.value.response.headers["retry-after"]) >= 1
        triton.stop()


def test_streams_together_say_what_each_says_alone(ai: openai.OpenAI, triton: TritonServer) -> None:
    def ask(number: int) -> str:
        prompt = f"{number}: write about tea. " * (1 + number % 5)
        stream = ai.completions.create(prompt=prompt, max_tokens=8 + number % 7, stream=True, **GREEDY)
        return "".join(chunk.choices[0].text for chunk in stream)

    alone = [ask(number) for number in range(32)]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(32))) == alone
    wait_until_idle(triton.endpoints.metrics)


def test_one_page_has_the_metrics_of_both(gateway: GatewayServer, ai: openai.OpenAI) -> None:
    ai.completions.create(prompt="Hi", max_tokens=1, **GREEDY)
    page = whole_page(gateway.url)
    assert "nv_trt_llm_kv_cache_block_metrics" in page
    assert "trierarch_gateway_requests_total" in page
    assert page.count("# TYPE nv_trt_llm_request_metrics ") == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        [
            "messages",
            "prompt",
            "n",
            "stop",
            "seed",
            "tools",
            "tool_choice",
            "logit_bias",
            "response_format",
            "logprobs",
            "temperature",
            "top_p",
            "top_k",
            "stop_token_ids",
            "cache_salt",
            "priority",
            "chat_template_kwargs",
            "presence_penalty",
            "min_tokens",
            "user",
        ]
    ),
    JSON,
    max_size=4,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(FIELDS, st.sampled_from(["chat/completions", "completions"]))
def test_whatever_is_sent_no_answer_is_a_failure_of_ours(gateway: GatewayServer, fields: Any, path: str) -> None:
    body = {"model": MODEL, "max_tokens": 1} | fields
    sent = json.dumps(body, allow_nan=True).encode()
    response = httpx.post(f"{gateway.url}/v1/{path}", content=sent, trust_env=False, timeout=60)
    assert response.status_code < 500, (fields, response.text)
    if response.status_code != 200:
        assert response.json()["error"]["message"]


def test_adapters_are_models_that_may_come_and_go(tmp_path: Path) -> None:
    adapted = adapted_engine(tmp_path / "engine", 2)
    shelf, store = tmp_path / "shelf", tmp_path / "store"
    shelf.mkdir()
    store.mkdir()
    adapted.put(shelf, "french", 1)
    adapted.put(store, "german", 2)
    prompt = "the ferry left at noon"
    config = ServerConfig(ports=Ports(http=0, grpc=0, metrics=0), drain_timeout=5)
    with (
        serving(adapted.engine, config, adapters=(shelf,)) as triton,
        gateway_before(triton, adapter_store=store, adapter_directory=shelf) as gateway,
        openai_client(gateway.url) as ai,
    ):
        direct = TritonClient(triton.endpoints.grpc)

        def says(model: str) -> str:
            return ai.completions.create(model=model, prompt=prompt, max_tokens=12, temperature=0).choices[0].text

        def expected(adapter: str) -> str:
            return direct.complete(Prompt(text=prompt, max_tokens=12, adapter=adapter))[0].text

        assert says("french") == expected("french")
        assert says(MODEL) == expected("")
        assert says("french") != says(MODEL)
        assert [model.id for model in ai.models.list().data][1:] == ["french"]
        with pytest.raises(openai.NotFoundError):
            says("german")
        url = f"{gateway.url}/v1/load_lora_adapter"
        assert httpx.post(url, json={"lora_name": "german"}, trust_env=False, timeout=60).status_code == 200
        eventually(lambda: "german" in [model.id for model in ai.models.list().data], "the adapter listed")
        assert says("german") == expected("german")
        url = f"{gateway.url}/v1/unload_lora_adapter"
        assert httpx.post(url, json={"lora_name": "german"}, trust_env=False, timeout=60).status_code == 200
        eventually(lambda: "german" not in [model.id for model in ai.models.list().data], "the adapter gone")
        triton.stop()


def test_readiness_tells_the_truth_when_the_model_dies_and_comes_back(demo_engine: Path) -> None:
    with serve(demo_engine) as process:
        url = process.endpoints["openai"]

        def status(path: str) -> int:
            return httpx.get(url + path, trust_env=False, timeout=60).status_code

        assert status("/ready") == 200
        (before,) = process.named("tritonserver")
        for stub in process.stubs():
            stub.kill()
        found: list[psutil.Process] = []

        def is_replaced() -> bool:
            found[:] = process.named("tritonserver")
            return bool(found) and before not in found

        eventually(is_replaced, "another server")
        (after,) = found
        after.suspend()  # else it may be back before the gateway has looked again, within a second
        eventually(lambda: status("/ready") == 503, "the truth told")
        assert status("/health") == 200
        refused = httpx.post(f"{url}/v1/completions", json=LONG, trust_env=False, timeout=60)
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        after.resume()
        eventually(lambda: status("/ready") == 200, "ready again")
        with openai_client(url) as ai:
            assert ai.completions.create(prompt="1 2 3", max_tokens=2, **GREEDY).choices[0].text


def test_sigterm_lets_streams_through_the_gateway_finish(demo_engine: Path) -> None:
    with serve(demo_engine, "--drain-timeout", "100") as process:
        url = process.endpoints["openai"]
        with openai_client(url) as ai:
            stream = ai.completions.create(stream=True, **(LONG | {"max_tokens": 60}))
            chunks = iter(stream)
            texts = [next(chunks).choices[0].text]
            process.process.send_signal(signal.SIGTERM)
            eventually(lambda: "open streams have" in process.said, "word of the drain")
            with suppress(httpx.TransportError):  # it may be over with the stream and gone by now
                refused = httpx.post(f"{url}/v1/completions", json=LONG, trust_env=False, timeout=60)
                assert refused.status_code == 503
            rest = list(chunks)
            assert rest[-1].choices[0].finish_reason == "length"
            assert texts[0]
        assert process.wait() == 0


def test_a_line_to_paste_answers(demo_engine: Path) -> None:
    command = [TRIERARCH, "serve", str(demo_engine), *FREE_PORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = ""
            while "/v1/chat/completions" not in line:
                line = process.stdout.readline()
                assert line, "serve ended early"
            asked = subprocess.run(
                f"{line.strip()} -s", shell=True, capture_output=True, text=True, timeout=100, check=True
            )
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert asked.stdout.endswith("data: [DONE]\n\n")


def test_a_chat_wakes_a_triton_that_sleeps_and_looking_does_not(demo_engine: Path) -> None:
    with serve(demo_engine, "--idle-timeout", "1s") as process:
        url = process.endpoints["openai"]

        def is_asleep() -> bool:
            return not process.stubs()

        with openai_client(url) as ai:
            first = ai.completions.create(prompt="1 2 3", max_tokens=4, **GREEDY)
            eventually(is_asleep, "asleep")
            assert httpx.get(f"{url}/ready", trust_env=False, timeout=60).status_code == 200
            assert "trierarch_gateway_ready 1.0" in httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text
            assert len(ai.models.list().data) == 1  # what it was when it was last awake
            assert is_asleep()
            again = ai.completions.create(prompt="1 2 3", max_tokens=4, **GREEDY)
            assert again.choices[0].text == first.choices[0].text
        process.process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
