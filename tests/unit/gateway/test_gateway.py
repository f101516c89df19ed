"""The gateway over HTTP, before a Triton that says what each test wants."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.eventually import eventually
from support.fake_triton import Asked, FixedUpstream, Front, Said, front, last
from trierarch.builder.errors import ConfigError, ResourceError
from trierarch.orchestrator.gateway.upstream import Endpoints, Unavailable

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
PROMPT = {"model": "demo", "prompt": "Hi"}


@pytest.fixture
def gateway() -> Iterator[Front]:
    with front() as started:
        yield started


def post(gateway: Front, path: str, body: Any, **options: Any) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=60) as client:
        if isinstance(body, bytes):
            return client.post(gateway.url + path, content=body, **options)
        return client.post(gateway.url + path, json=body, **options)


def get(gateway: Front, path: str, **options: Any) -> httpx.Response:
    return httpx.get(gateway.url + path, trust_env=False, timeout=60, **options)


def chat(gateway: Front, **fields: Any) -> httpx.Response:
    return post(gateway, "/v1/chat/completions", CHAT | fields)


def complete(gateway: Front, **fields: Any) -> httpx.Response:
    return post(gateway, "/v1/completions", PROMPT | fields)


def hang_up_once(holds: Callable[[], bool], what: str, gateway: Front, path: str, body: Any) -> None:
    """Ask, and wait for no answer but for `holds`."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as connection:
        connection.sendall(head.encode() + content)
        eventually(holds, what)


def events(response: httpx.Response) -> list[Any]:
    """The events of a whole stream."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_chat(gateway: Front) -> None:
    answer = chat(gateway).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "demo"
    assert answer["system_fingerprint"] == "fp_000000000000", "of the engine's digest"
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "Hello world"
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] is None
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["usage"]["total_tokens"] == 5


def test_a_streamed_chat(gateway: Front) -> None:
    *chunks, done = events(chat(gateway, stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[1:-1]] == ["Hello", " world", None]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_what_is_asked_of_the_model(gateway: Front) -> None:
    chat(gateway)
    (asked,) = gateway.triton.asked
    assert json.loads(asked.one("messages")) == {"messages": CHAT["messages"]}
    assert asked.one("fit_max_tokens")
    assert asked.one("temperature") == 1.0
    assert asked.one("top_k") == 0  # the contract is greedy without it
    assert asked.one("lora_name") is None
    assert asked.outputs == ["text_output", "finish_reason", "usage"]
    complete(gateway, model="french", max_tokens=7, temperature=0, logit_bias={"5": -100}, seed=-1, stop="x")
    asked = gateway.triton.asked[-1]
    assert asked.one("text_input") == "Hi"
    assert asked.one("max_tokens") == 7
    assert asked.one("fit_max_tokens") is None
    assert asked.one("top_k") == 1
    assert asked.one("lora_name") == "french"
    assert (asked.inputs["logit_bias_ids"], asked.inputs["logit_bias_values"]) == ([5], [-100.0])
    assert asked.one("seed") == 2**64 - 1
    assert asked.inputs["stop_words"] == ["x"]


def test_several_prompts_have_their_choices(gateway: Front) -> None:
    async def say(asked: Asked) -> AsyncIterator[Said]:
        name = asked.one("text_input")
        for index in (1, 0):
            yield last(f"{name}{index}", index=index)

    gateway.triton.script = say
    answer = complete(gateway, prompt=["a", "b", "c"], n=2, echo=True).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "aa0"), (1, "aa1"), (2, "bb0"), (3, "bb1"), (4, "cc0"), (5, "cc1"),
    ]  # fmt: skip
    assert answer["usage"] == {
        "prompt_tokens": 9,  # each prompt once
        "completion_tokens": 6,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    streamed = complete(gateway, prompt=["a", "b", "c"], n=2, stream=True)
    texts = {chunk["choices"][0]["index"]: "" for chunk in events(streamed)[:-1]}
    for chunk in events(streamed)[:-1]:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "a0", 1: "a1", 2: "b0", 3: "b1", 4: "c0", 5: "c1"}


def test_one_bad_prompt_ends_all(gateway: Front) -> None:
    async def say(asked: Asked) -> AsyncIterator[Said]:
        if asked.one("text_input") == "bad":
            yield Said(error="INVALID_ARG: text_input is 'bad': too long")
        else:
            await asyncio.sleep(60)

    gateway.triton.script = say
    refused = complete(gateway, prompt=["good", "bad"])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "prompt"
    eventually(lambda: gateway.triton.num_cancelled == 1, "the other prompt cancelled")


def test_log_probs(gateway: Front) -> None:
    tokens = [{"token_id": 7, "logprob": -0.5, "top": [[7, -0.5], [8, -1.5]]}]

    async def say(asked: Asked) -> AsyncIterator[Said]:
        more = {"top_log_probs": json.dumps(tokens), "token_bytes": json.dumps({"7": "Ã", "8": "b"})}
        if asked.one("num_prompt_log_probs") is not None:
            more["prompt_log_probs"] = json.dumps([None, *tokens])
        yield last("é", **more)

    gateway.triton.script = say
    (item,) = chat(gateway, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert item["token"] == "\ufffd"
    assert item["bytes"] == [0xC3]
    assert [top["token"] for top in item["top_logprobs"]] == ["\ufffd", "b"]
    *chunks, _ = events(chat(gateway, logprobs=True, stream=True))
    assert next(chunk for chunk in chunks if chunk["choices"][0]["logprobs"])["choices"][0]["delta"] == {"content": "é"}
    logprobs = complete(gateway, prompt="ab", logprobs=2, echo=True).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "\ufffd", "\ufffd"]
    assert logprobs["token_logprobs"] == [None, -0.5, -0.5]
    assert logprobs["text_offset"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ("INVALID_ARG: num_return_sequences is 9: must be at most 3", 400, None),
        (
            "INVALID_ARG: max_tokens is 9: must be at most 3 after 5 prompt tokens, since the engine's max_seq_len is 8",
            400,
            "context_length_exceeded",
        ),
        ("INVALID_ARG: max_tokens is 9: with 5 prompt tokens it needs 13 KV slots", 400, "context_length_exceeded"),
        (
            "INVALID_ARG: number of tokens of text_input is 9: must be below the engine's max_seq_len (8)",
            400,
            "context_length_exceeded",
        ),
        ("INVALID_ARG: lora_name is 'french': is not registered", 404, "model_not_found"),
        ("UNAVAILABLE: the queue is full", 503, "overloaded"),
        ("CANCELLED: the deadline passed", 504, "cancelled"),
        ("INTERNAL: a step failed", 500, "internal_error"),
        ("Request for unknown model: 'tensorrt_llm' is not found", 404, "model_not_found"),
        ("Stub process 'x' is not healthy.", 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_model_refuses_has_its_status(
    gateway: Front, said: str, status: int, code: str | None, stream: bool
) -> None:
    async def say(asked: Asked) -> AsyncIterator[Said]:
        yield Said(error=said)

    gateway.triton.script = say
    refused = chat(gateway, stream=stream)
    assert refused.status_code == status
    assert refused.json()["error"]["code"] == code
    assert ("retry-after" in refused.headers) == (status == 503)
    if "number of tokens" in said:
        assert refused.json()["error"]["param"] == "prompt"


def test_an_error_amid_a_stream_is_an_event_and_no_end(gateway: Front) -> None:
    async def say(asked: Asked) -> AsyncIterator[Said]:
        yield Said({"text_output": "Hel"})
        yield Said(error="INTERNAL: a step failed")

    gateway.triton.script = say
    response = chat(gateway, stream=True)
    assert response.status_code == 200
    *_, broken = events(response)
    assert broken["error"]["message"] == "a step failed"


def test_a_client_that_hangs_up_ends_the_work(gateway: Front) -> None:
    async def say(asked: Asked) -> AsyncIterator[Said]:
        while True:
            yield Said({"text_output": "x"})
            await asyncio.sleep(0.01)

    gateway.triton.script = say
    with (
        httpx.Client(trust_env=False, timeout=60) as client,
        client.stream("POST", gateway.url + "/v1/chat/completions", json=CHAT | {"stream": True}) as response,
    ):
        next(response.iter_raw())
    eventually(lambda: gateway.triton.num_cancelled == 1, "the work cancelled")
    eventually(lambda: gateway.upstream.num_leases == 0, "the lease given back")
    hang_up_once(lambda: len(gateway.triton.asked) == 2, "asked", gateway, "/v1/chat/completions", CHAT)
    eventually(lambda: gateway.triton.num_cancelled == 2, "unstreamed work cancelled")
    assert 'status="499"} 2.0' in get(gateway, "/metrics").text


def test_a_client_that_does_not_read_holds_up_the_model_and_is_dropped_at_last() -> None:
    async def say(asked: Asked) -> AsyncIterator[Said]:
        while True:
            yield Said({"text_output": "x" * 4096})

    with front(write_timeout=1.0) as gateway:
        gateway.triton.script = say
        with (
            httpx.Client(trust_env=False, timeout=60) as client,
            client.stream("POST", gateway.url + "/v1/chat/completions", json=CHAT | {"stream": True}) as response,
        ):
            next(response.iter_raw())
            eventually(lambda: gateway.triton.num_cancelled == 1, "the work cancelled")
            # What is on its way lies in the buffers of two connections, each of some MB at most.
            assert gateway.triton.num_sent * 4096 < 64 << 20


def test_one_that_has_gone_before_there_is_a_triton_is_never_sent(gateway: Front) -> None:
    complete(gateway)
    gateway.triton.asked.clear()
    gateway.upstream.wake = asyncio.Event()
    hang_up_once(lambda: gateway.upstream.num_waiting == 1, "it waits", gateway, "/v1/completions", PROMPT)
    eventually(lambda: gateway.upstream.num_waiting == 0, "the wait over")
    assert gateway.triton.asked == []


def test_no_triton_is_503_with_its_own_time(gateway: Front) -> None:
    assert get(gateway, "/ready").status_code == 200
    gateway.upstream.refusal = Unavailable("it starts", 7.2)
    refused = chat(gateway)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "8"
    assert get(gateway, "/ready").status_code == 503
    assert get(gateway, "/health").status_code == 200


class Held:
    """A script that answers when it is told to."""

    def __init__(self) -> None:
        self._may_end = threading.Event()

    async def __call__(self, asked: Asked) -> AsyncIterator[Said]:
        yield Said({"text_output": "Hello"})
        await asyncio.to_thread(self._may_end.wait)
        yield last(" world")

    def end(self) -> None:
        self._may_end.set()


def test_more_than_may_be_open_are_refused_at_once() -> None:
    held = Held()
    with front(max_open=1) as gateway:
        gateway.triton.script = held
        answers: list[httpx.Response] = []
        first = threading.Thread(target=lambda: answers.append(chat(gateway)))
        first.start()
        eventually(lambda: len(gateway.triton.asked) == 1, "one request open")
        refused = chat(gateway)
        held.end()
        first.join()
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        assert answers[0].status_code == 200
        assert chat(gateway).status_code == 200


def test_draining_lets_open_streams_finish_and_nobody_in(gateway: Front) -> None:
    held = Held()
    gateway.triton.script = held
    answers: list[httpx.Response] = []
    first = threading.Thread(target=lambda: answers.append(chat(gateway, stream=True)))
    first.start()
    eventually(lambda: len(gateway.triton.asked) == 1, "one request open")
    gateway.server.refuse_new()
    refused = chat(gateway)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    assert get(gateway, "/ready").status_code == 503
    assert not gateway.server.wait_idle(0.1)
    held.end()
    assert gateway.server.wait_idle(60)
    first.join()
    assert events(answers[0])[-1] == "[DONE]"


def test_keys() -> None:
    def bearer(key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATEWAY_KEYS", "one,two")
        with front(api_keys_variable="GATEWAY_KEYS") as gateway:
            for path in ("/v1/models", "/v1/models/demo"):
                assert get(gateway, path).status_code == 401
                assert get(gateway, path, headers=bearer("three")).json()["error"]["code"] == "invalid_api_key"
                assert get(gateway, path, headers=bearer("two")).status_code == 200
            for path in ("/v1/chat/completions", "/v1/load_lora_adapter", "/tokenize", "/v1/embeddings"):
                assert post(gateway, path, b"no JSON").status_code == 401
            # Paths that another reading of them would let pass.
            for path in (
                "//v1/models",
                "/v1/models/",
                "/health/../v1/models",
                "/V1/models",
                "/v1%2fmodels",
                "/v1/models%20",
            ):
                with httpx.Client(trust_env=False, timeout=60) as client:
                    raw = client.build_request("GET", gateway.url)
                    raw.url = raw.url.copy_with(raw_path=path.encode())
                    assert client.send(raw).status_code in (401, 404)
            assert get(gateway, "/health").status_code == 200
            assert get(gateway, "/ready").status_code == 200
            assert get(gateway, "/metrics").status_code == 200


def test_a_key_has_its_share() -> None:
    held = Held()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATEWAY_KEYS", "one,two")
        with front(api_keys_variable="GATEWAY_KEYS", max_open_per_key=1) as gateway:
            gateway.triton.script = held

            def ask(key: str) -> httpx.Response:
                return post(gateway, "/v1/completions", PROMPT, headers={"Authorization": f"Bearer {key}"})

            first = threading.Thread(target=ask, args=("one",))
            first.start()
            eventually(lambda: len(gateway.triton.asked) == 1, "one request open")
            refused = ask("one")
            other = threading.Thread(target=ask, args=("two",))
            other.start()
            eventually(lambda: len(gateway.triton.asked) == 2, "another key's beside it")
            held.end()
            first.join()
            other.join()
            assert refused.status_code == 429
            assert "retry-after" in refused.headers


def test_request_ids_go_in_and_out(gateway: Front) -> None:
    response = post(gateway, "/v1/completions", PROMPT, headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert gateway.triton.asked[0].request_id == "mine-1"
    odd = post(gateway, "/v1/completions", PROMPT, headers={"x-request-id": "a b"})
    assert odd.headers["x-request-id"].startswith("req-")


def test_models(gateway: Front) -> None:
    listed = get(gateway, "/v1/models").json()
    assert [(model["id"], model["parent"]) for model in listed["data"]] == [("demo", None), ("french", "demo")]
    assert get(gateway, "/v1/models/french").json()["max_model_len"] == 64
    assert get(gateway, "/v1/models/spanish").status_code == 404
    unknown = chat(gateway, model="spanish")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"
    assert gateway.triton.asked == []


def test_a_new_adapter_is_found_and_names_can_be_the_operators(gateway: Front) -> None:
    with front(names=("gpt-4o", "small")) as named:
        named.triton.description["adapters"] = ["german"]
        assert [model["id"] for model in get(named, "/v1/models").json()["data"]] == ["gpt-4o", "small", "german"]
        assert chat(named, model="small").status_code == 200
        assert chat(named, model="demo").status_code == 404
    gateway.triton.description["adapters"] = ["late"]
    eventually(lambda: chat(gateway, model="late").status_code == 200, "the new adapter")


def test_what_is_not_served_says_so(gateway: Front) -> None:
    embedded = post(gateway, "/v1/embeddings", {"model": "demo", "input": "x"})
    assert embedded.status_code == 400
    assert "no embeddings" in embedded.json()["error"]["message"]
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert post(gateway, path, {"lora_name": "french", "lora_path": "/etc"}).status_code == 404
    nowhere = get(gateway, "/v1/nothing")
    assert nowhere.status_code == 404
    assert nowhere.json()["error"]["code"] == "unknown_url"
    assert get(gateway, "/v1/chat/completions").status_code == 405


def test_a_body_has_its_bound() -> None:
    with front(max_body_bytes=1000) as gateway:
        refused = chat(gateway, user="x" * 2000)
        assert refused.status_code == 413
        assert refused.json()["error"]["code"] == "request_too_large"

        def chunks() -> Iterator[bytes]:
            yield b"x" * 600
            yield b"x" * 600

        url = gateway.url + "/v1/completions"
        assert httpx.post(url, content=chunks(), trust_env=False, timeout=60).status_code == 413
        assert chat(gateway).status_code == 200


def test_metrics_tell_what_happened(gateway: Front) -> None:
    chat(gateway)
    chat(gateway, n="x")
    page = get(gateway, "/metrics").text
    assert 'trierarch_gateway_requests_total{endpoint="/v1/chat/completions",status="200"} 1.0' in page
    assert 'trierarch_gateway_requests_total{endpoint="/v1/chat/completions",status="400"} 1.0' in page
    assert "trierarch_gateway_completion_tokens_total 2.0" in page
    assert "trierarch_gateway_open_requests 0.0" in page
    assert "trierarch_gateway_ready 1.0" in page


def test_a_gateway_that_cannot_be_configured_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--api-keys"), front(api_keys_file=tmp_path / "none"):
        pass


def test_an_occupied_port_is_told(gateway: Front) -> None:
    with pytest.raises(ResourceError, match="--gateway-port"), front(port=gateway.port):
        pass


def test_who_is_known_is_not_asked_for_again(gateway: Front) -> None:
    """A name that is known costs no question; one that is not costs one a second at most."""
    chat(gateway)
    before = gateway.triton.num_described
    for _ in range(3):
        assert chat(gateway).status_code == 200
        assert chat(gateway, model="french").status_code == 200
    assert gateway.triton.num_described == before


def test_who_polls_what_is_served_does_not_use_it(gateway: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trierarch.orchestrator.gateway.engine.FRESH_SECONDS", 0.0)
    chat(gateway)
    uses, described = gateway.upstream.num_uses, gateway.triton.num_described
    gateway.triton.description["adapters"] = ["german"]
    for path in ("/v1/models", "/v1/models/german", "/health", "/ready", "/metrics"):
        assert get(gateway, path).status_code == 200, path
    assert gateway.triton.num_described == described + 2, "it is looked at"
    gateway.triton.description["adapters"] = []
    gateway.upstream.wake = asyncio.Event()  # it sleeps from now on
    assert get(gateway, "/v1/models/german").status_code == 200, "what it said last"
    assert gateway.upstream.num_uses == uses
    assert gateway.upstream.num_waiting == 0


def test_one_that_goes_to_sleep_while_it_is_looked_at_is_known_all_the_same(
    gateway: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trierarch.orchestrator.gateway.engine.FRESH_SECONDS", 0.0)
    listed = get(gateway, "/v1/models").json()
    gone = Endpoints(grpc="127.0.0.1:1", http="127.0.0.1:1", metrics="127.0.0.1:1")
    monkeypatch.setattr(FixedUpstream, "awake", gone)
    assert get(gateway, "/v1/models").json() == listed
