"""/v1/embeddings before a Triton that says what each test wants."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from support.fake_triton import Asked, Front, Said, front

USAGE = json.dumps({"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 1})


async def embed(asked: Asked) -> AsyncIterator[Said]:
    """A text's first token, or its length, tells which it was."""
    number = asked.inputs["input_ids"][0] if "input_ids" in asked.inputs else len(asked.one("text_input"))
    yield Said({"usage": USAGE}, {}, {"embedding": [float(number), 0.6, 0.8]})


@pytest.fixture
def gateway() -> Iterator[Front]:
    with front() as started:
        started.triton.description["makes_embeddings"] = True
        started.triton.script = embed
        yield started


def ask(gateway: Front, **fields: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/embeddings", json={"model": "demo"} | fields, trust_env=False, timeout=60)


def test_texts_and_tokens_come_back_in_their_order(gateway: Front) -> None:
    answer = ask(gateway, input=["a", "bbb", "cc"], user="me").json()
    assert answer["object"] == "list"
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    assert [item["embedding"] for item in answer["data"]] == [pytest.approx([n, 0.6, 0.8]) for n in (1, 3, 2)]
    assert answer["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert [ask(gateway, input=given).json()["data"][0]["embedding"][0] for given in ("abcd", [7, 8])] == [4, 7]
    assert len(ask(gateway, input=[[5], [6, 7]]).json()["data"]) == 2
    asked = gateway.triton.asked[0]
    assert (asked.one("return_embedding"), asked.one("max_tokens")) == (True, 1)
    assert ask(gateway, input="a", model="french").status_code == 200
    assert gateway.triton.asked[-1].one("lora_name") == "french"


def test_more_than_the_model_has_at_once(gateway: Front) -> None:
    answer = ask(gateway, input=[[number] for number in range(100)]).json()
    assert [item["embedding"][0] for item in answer["data"]] == list(range(100))


def test_base64_and_fewer_dimensions(gateway: Front) -> None:
    told = ask(gateway, input=[[0]], encoding_format="base64").json()["data"][0]["embedding"]
    assert struct.unpack("<3f", base64.b64decode(told)) == pytest.approx((0, 0.6, 0.8))
    assert ask(gateway, input=[[0]], dimensions=2).json()["data"][0]["embedding"] == pytest.approx([0, 1])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [""]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 4}, "dimensions"),
        ({"input": "a", "truncate_prompt_tokens": 4}, "truncate_prompt_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(gateway: Front, fields: dict[str, Any], param: str) -> None:
    refused = ask(gateway, **fields)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param


def test_one_refused_text_ends_all(gateway: Front) -> None:
    async def refuse(asked: Asked) -> AsyncIterator[Said]:
        if asked.one("text_input") == "bad":
            yield Said(error="[INVALID_ARG] text_input is bad")
        else:
            async for said in embed(asked):
                yield said

    gateway.triton.script = refuse
    assert ask(gateway, input=["a", "bad", "b"]).status_code >= 400


def test_an_engine_that_makes_none_says_how_one_is_built(gateway: Front) -> None:
    with front() as plain:
        refused = ask(plain, input="a")
        assert refused.status_code == 400
        assert "--pooling" in refused.json()["error"]["message"]
        assert plain.triton.asked == []
