"""A gateway in front of several engines, each of them a Triton that says what the test wants."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from support.eventually import eventually
from support.fake_triton import Asked, FakeTriton, FixedUpstream, Said, fake_triton, gateway_of, last
from trierarch.builder.errors import ConfigError
from trierarch.orchestrator.gateway import engine
from trierarch.orchestrator.gateway.source import Source, always_on
from trierarch.orchestrator.gateway.upstream import Endpoints, Unavailable


@dataclass(frozen=True, slots=True)
class Two:
    """A gateway before engines a and b, which both have the adapter french; b has german besides."""

    url: str
    a: FakeTriton
    b: FakeTriton
    before_a: FixedUpstream
    before_b: FixedUpstream

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, trust_env=False, timeout=60)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False, timeout=60)

    def complete(self, model: str) -> httpx.Response:
        return self.post("/v1/completions", model=model, prompt="Hi")


@contextmanager
def two_engines(**config: Any) -> Iterator[Two]:
    with fake_triton() as (a, at_a), fake_triton() as (b, at_b):
        b.description["adapters"] = ["french", "german"]
        before_a, before_b = FixedUpstream(at_a, "a"), FixedUpstream(at_b, "b")
        sources = [
            Source(label="a", upstream=before_a, names=("a",)),
            Source(label="b", upstream=before_b, names=("b",)),
        ]
        with gateway_of(sources, **config) as server:
            yield Two(server.url, a, b, before_a, before_b)


@pytest.fixture
def two() -> Iterator[Two]:
    with two_engines() as started:
        yield started


def test_every_engine_and_adapter_is_listed_by_a_name_that_finds_it(two: Two) -> None:
    models = two.get("/v1/models").json()["data"]
    assert [(model["id"], model["parent"]) for model in models] == [
        ("a", None), ("a/french", "a"), ("b", None), ("b/french", "b"), ("german", "b"),
    ]  # fmt: skip
    for model in models:
        assert two.complete(model["id"]).status_code == 200
        assert two.get(f"/v1/models/{model['id']}").json() == model


@pytest.mark.parametrize(
    ("name", "engine", "adapter"),
    [
        ("a", "a", None),
        ("b", "b", None),
        ("tensorrt_llm", "a", None),
        ("german", "b", "german"),
        ("b/french", "b", "french"),
        ("b/german", "b", "german"),
    ],
)
def test_a_request_goes_to_the_engine_that_it_names(two: Two, name: str, engine: str, adapter: str | None) -> None:
    assert two.complete(name).json()["model"] == name
    asked = {"a": two.a, "b": two.b}[engine].asked
    assert [(one.engine, one.one("lora_name")) for one in asked] == [(engine, adapter)]
    assert len(two.a.asked) + len(two.b.asked) == 1
    assert two.post("/tokenize", model=name, prompt="Hi").status_code >= 500  # a stand-in has no tokens
    assert asked[-1].one("tokenize_only")


def test_an_engine_that_is_not_meant_is_left_alone(two: Two) -> None:
    assert two.complete("b").status_code == 200
    assert two.a.num_described == 0


def test_a_name_that_two_engines_have_is_refused_with_both(two: Two) -> None:
    refused = two.complete("french")
    assert refused.status_code == 400
    assert "a/french, b/french" in refused.json()["error"]["message"]
    assert two.complete("a/german").status_code == 404
    assert two.complete("nothing").status_code == 404


def test_one_that_is_down_takes_nobody_with_it(two: Two) -> None:
    two.before_a.refusal = Unavailable("it does not start", 7.0)
    assert two.complete("b").status_code == 200
    assert two.complete("german").status_code == 200
    down = two.complete("a")
    assert down.status_code == 503
    assert down.headers["retry-after"] == "7"
    assert two.complete("unheard").status_code == 503, "it may be an adapter of the one that cannot be asked"
    assert [model["id"] for model in two.get("/v1/models").json()["data"]] == ["b", "french", "german"]
    ready = two.get("/ready")
    assert ready.status_code == 503
    assert "a is not ready, b is ready" in ready.json()["error"]["message"]
    page = two.get("/metrics").text
    assert 'trierarch_gateway_engine_ready{engine="a"} 0.0' in page
    assert 'trierarch_gateway_engine_ready{engine="b"} 1.0' in page
    assert "trierarch_gateway_ready 0.0" in page


def test_a_full_queue_of_one_refuses_nobody_else(two: Two) -> None:
    two.a.description |= {"max_batch_size": 1, "max_queue_size": 0}
    is_over = threading.Event()

    async def wait(asked: Asked) -> AsyncIterator[Said]:
        await asyncio.to_thread(is_over.wait)
        yield last("done")

    two.a.script = wait
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(two.complete("a").status_code))
    slow.start()
    try:
        eventually(lambda: bool(two.a.asked), "under way")
        assert 'trierarch_gateway_engine_open_requests{engine="a"} 1.0' in two.get("/metrics").text
        refused = two.complete("a")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert two.complete("b").status_code == 200
    finally:
        is_over.set()
        slow.join()
    assert answers == [200]


def test_models_of_one_triton_have_names_of_their_own() -> None:
    nowhere = Endpoints("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1")

    async def ask(models: tuple[str, ...], names: tuple[str, ...] = ()) -> list[Source]:
        async with always_on(nowhere, models, names) as sources:
            return sources

    assert [source.names for source in asyncio.run(ask(("small", "large")))] == [("small",), ("large",)]
    assert [source.names for source in asyncio.run(ask(("small",), ("gpt",)))] == [("gpt",)]
    with pytest.raises(ConfigError, match="twice"):
        asyncio.run(ask(("small", "small")))
    with pytest.raises(ConfigError, match="--served-name"):
        asyncio.run(ask(("small", "large"), ("gpt",)))


def test_a_name_that_came_while_an_engine_slept_wakes_it_if_it_can_be_of_no_other(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FRESH_SECONDS", 0.0)
    two.get("/v1/models")
    for upstream, triton in ((two.before_a, two.a), (two.before_b, two.b)):
        upstream.wake = asyncio.Event()
        upstream.wake.set()
        triton.description["adapters"] = ["new"]
    uses = two.before_a.num_uses, two.before_b.num_uses
    assert two.complete("new").status_code == 404, "it could be of either"
    assert (two.before_a.num_uses, two.before_b.num_uses) == uses
    assert two.complete("a/new").status_code == 200
    assert two.before_b.num_uses == uses[1]
    assert two.a.asked[-1].one("lora_name") == "new"


def test_who_has_an_adapter_is_known_without_asking_the_others(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "FRESH_SECONDS", 0.0)
    two.get("/v1/models")
    asked = two.a.num_described
    two.a.description["adapters"] = []
    assert two.complete("german").status_code == 200
    assert two.a.num_described == asked, "it would be kept awake by it"
    assert two.complete("late").status_code == 404
    assert two.a.num_described == asked + 1
    assert two.complete("french").status_code == 200, "of b alone by now"
