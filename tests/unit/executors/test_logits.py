"""Logits that are told: those that tokens were drawn from, of every prompt token, however the prompt was computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from support.asking import PROMPT, Client, Stream
from support.guiding import readable_engine
from support.random_engine import with_kernels
from trierarch.builder.compile import find_compiler
from trierarch.builder.manifest import MANIFEST_NAME
from trierarch.python_backend.errors import InvalidRequest, Overloaded
from trierarch.python_backend.executors.factory import open_executor
from trierarch.python_backend.executors.logits_budget import LogitsBudget
from trierarch.python_backend.request import Request, SamplingParams

LONG = tuple(range(40, 76))


@pytest.fixture(scope="module", params=["eager", "compiled"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of an engine that computes prompts in pieces, with few blocks."""
    folder = tmp_path_factory.mktemp("engine")
    manifest = readable_engine(folder, block_size=16, num_blocks=6, max_num_tokens=20)
    if request.param == "compiled":
        if find_compiler() is None:
            pytest.skip("no C++ compiler")
        (folder / MANIFEST_NAME).write_text(with_kernels(folder, manifest).to_json())
    executor = open_executor(folder)
    yield Client(executor)
    executor.close()


def context(stream: Stream) -> np.ndarray[Any, Any]:
    (rows,) = [delta.context_logits for delta in stream.deltas if delta.context_logits is not None]
    return np.stack(rows)


def generated(stream: Stream) -> np.ndarray[Any, Any]:
    return np.stack([row for delta in stream.deltas for row in delta.generation_logits or ()])


def test_context_logits_are_those_that_a_next_token_would_be_drawn_from(client: Client) -> None:
    asked = {"return_context_logits": True, "max_tokens": 1}
    (whole,) = client.ask({"prompt": LONG, **asked})
    (again,) = client.ask({"prompt": LONG, **asked, "prompt_logprobs": 2})  # its first blocks are in the cache
    steps = client.ask(
        *({"prompt": LONG[:end], "max_tokens": 1, "return_generation_logits": True} for end in range(1, len(LONG) + 1))
    )
    told = context(whole)
    assert told.shape[0] == len(LONG)
    np.testing.assert_allclose(told, np.concatenate([generated(step) for step in steps]), atol=1e-5)
    np.testing.assert_allclose(told, context(again), atol=1e-5)
    logprobs = again.deltas[0].prompt_logprobs
    assert logprobs is not None
    normalizer = np.log(np.exp(told.astype(np.float64)).sum(1))
    for place, entry in enumerate(logprobs[1:]):
        assert entry is not None
        assert entry.logprob == pytest.approx(told[place, LONG[place + 1]] - normalizer[place], abs=1e-4)


def test_generation_logits_are_of_the_shown_tokens_alone(client: Client) -> None:
    """Before anything that sampling asks for; a token that ends the output has none."""
    asked: dict[str, Any] = {"return_generation_logits": True, "max_tokens": 12}
    (plain,) = client.ask(dict(asked))
    assert generated(plain).argmax(1).tolist() == plain.token_ids
    (guessed,) = client.ask({**asked, "draft": tuple(plain.token_ids[:7])})
    np.testing.assert_allclose(generated(guessed), generated(plain), atol=1e-5)
    biased = {plain.token_ids[0]: -np.inf}
    (other,) = client.ask({**asked, "logit_bias": biased, "max_tokens": 1})
    assert other.token_ids != plain.token_ids[:1]
    np.testing.assert_allclose(generated(other)[0], generated(plain)[0], atol=1e-5)
    (ended,) = client.ask({**asked, "end_ids": (plain.token_ids[3],)})
    assert len(generated(ended)) == len(ended.token_ids) <= 3
    assert all(delta.generation_logits is None for delta in client.ask({})[0].deltas)


def test_preemption_loses_no_row(client: Client) -> None:
    asks = [
        {
            "prompt": LONG[start : start + 14],
            "return_context_logits": True,
            "return_generation_logits": True,
            "n": n,
            "max_tokens": 40,
        }
        for start, n in ((0, 1), (1, 2), (2, 1), (3, 1))
    ]
    alone = [stream for ask in asks for stream in client.ask(dict(ask))]
    together = client.ask(*(dict(ask) for ask in asks))
    assert sum(stream.num_preemptions for stream in together) > 0
    for index, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(generated(one), generated(other), atol=1e-5)
        if index == 2:  # the second of two for one prompt
            assert all(delta.context_logits is None for delta in other.deltas)
        else:
            np.testing.assert_allclose(context(one), context(other), atol=1e-5)


def test_the_budget_is_for_all_that_live() -> None:
    def request(name: str, num_prompt_tokens: int, **sampling: Any) -> Request:
        params = SamplingParams(**{"max_tokens": 5, **sampling})
        return Request(request_id=name, prompt_token_ids=PROMPT * num_prompt_tokens, sampling=params, arrival_time=0.0)

    budget = LogitsBudget(vocab_size=100, max_bytes=100 * 4 * 20)
    first = request("1", 4, return_context_logits=True)  # 12 rows
    budget.check(first)
    budget.hold(first)
    second = request("2", 1, n=2, return_generation_logits=True)  # 10 rows
    with pytest.raises(Overloaded, match="leave no room for 4000 bytes more"):
        budget.check(second)
    budget.check(request("3", 100))
    budget.release("1")
    budget.check(second)
    with pytest.raises(InvalidRequest, match=r"^return_context_logits is True: 21 tokens of 400 bytes make 8400 bytes"):
        budget.check(request("4", 7, return_context_logits=True))
