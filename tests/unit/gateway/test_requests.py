"""Bodies of requests: what is honoured, what is refused and in which words, and that nothing else ever happens."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trierarch.orchestrator.gateway.chat_request import read_chat
from trierarch.orchestrator.gateway.completion_request import read_completion
from trierarch.orchestrator.gateway.errors import ApiError
from trierarch.orchestrator.gateway.fields import parse_object
from trierarch.orchestrator.gateway.piece import Piece, Usage, read_pieces
from trierarch.orchestrator.gateway.tools import Calling
from trierarch.orchestrator.gateway.triton_messages import service_pb2

MESSAGES = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}
CHAT: dict[str, Any] = {"model": "demo", "messages": MESSAGES}
PROMPT: dict[str, Any] = {"model": "demo", "prompt": "Hi"}


def tensors(request: Any) -> dict[str, Any]:
    """The first prompt's inputs, as the wire has them, with strings decoded."""
    inputs = request.generation.prompts[0].request("m", "i", []).inputs
    contents = request.generation.prompts[0].request("m", "i", []).raw_input_contents
    return {
        tensor.name: content[4:].decode() if tensor.datatype == "BYTES" else content
        for tensor, content in zip(inputs, contents, strict=True)
    }


def refused(read: Callable[[dict[str, Any]], Any], body: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(body)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"model": None}, "model", "you must provide a model"),
        ({"messages": None}, "messages", "at least one"),
        ({"messages": "Hi"}, "messages", "a list of objects"),
        ({"messages": ["Hi"]}, "messages[0]", "an object"),
        ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role", "one of system"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "needs content"),
        ({"messages": [{"role": "user", "content": "Hi", "mood": 1}]}, "messages[0].mood", "Unrecognized"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "reads text alone",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "surrogate"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "["}}]}]},
            "messages[0].tool_calls[0].function.arguments",
            "must be JSON",
        ),
        ({"temperature": "hot"}, "temperature", "a number"),
        ({"temperature": True}, "temperature", "a number"),
        ({"temperature": 3}, "temperature", "between 0 and 2"),
        ({"temperature": 1e300}, "temperature", "between 0 and 2"),
        ({"top_p": -0.1}, "top_p", "between 0 and 1"),
        ({"n": 0}, "n", "between 1 and 64"),
        ({"n": 10**30}, "n", "between 1 and 64"),
        ({"n": 1.5}, "n", "an integer"),
        ({"max_tokens": 0}, "max_tokens", "between 1"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "contradicts"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": ""}, "stop", "empty string"),
        ({"stop": 7}, "stop", "a list of strings"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"99999999999": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "between -100 and 100"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": 2}, "logprobs", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "is for streams"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "with a schema"),
        ({"tools": [{"type": "web"}]}, "tools[0].type", "type function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "letters"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": 1}}]},
            "tools[0].function.parameters",
            "an object",
        ),
        ({"tools": [TOOL, TOOL]}, "tools", "one name"),
        ({"tool_choice": "auto"}, "tool_choice", "no tools"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice", "must be"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice",
            "one of the tools",
        ),
        (
            {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
            "contradicts",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "any", "tools": []}}},
            "tool_choice.allowed_tools",
            '"auto" or "required"',
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
            "tool_choice.allowed_tools.tools",
            "names no tool",
        ),
        (
            {
                "tools": [TOOL],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "no"}}]},
                },
            },
            "tool_choice.allowed_tools.tools[0].function",
            "one of the tools",
        ),
        ({"functions": [{}]}, "functions", "send tools"),
        ({"modalities": ["audio"]}, "modalities", "text alone"),
        ({"moderation": {"model": "m"}}, "moderation", "judges nothing"),
        ({"chat_template": "{{ 1 }}"}, "chat_template", "the model's own"),
        ({"frobnicate": 1}, "frobnicate", "Unrecognized request argument supplied: frobnicate"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "between 0"),
        ({"seed": 2**64}, "seed", "between"),
    ],
)
def test_a_chat_that_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str, says: str) -> None:
    error = refused(read_chat, CHAT | fields)
    assert error.param == param
    assert says in error.message


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": None}, "prompt", "send a string"),
        ({"prompt": []}, "prompt", "send a string"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": ["a", ""]}, "prompt", "empty"),
        ({"prompt": [1, "a"]}, "prompt", "token ids"),
        ({"prompt": [[1], "a", [-1]]}, "prompt", "between 0"),
        ({"prompt": ["a"] * 65}, "prompt", "at most 64"),
        ({"prompt": {"a": 1}}, "prompt", "must be a string"),
        ({"suffix": "x"}, "suffix", "fills no gap"),
        ({"best_of": 3}, "best_of", "not ranked"),
        ({"length_penalty": 1}, "length_penalty", "is for beams"),
        ({"early_stopping": True}, "early_stopping", "is for beams"),
        ({"use_beam_search": True, "n": 3, "best_of": 2}, "best_of", "at least n, which is 3"),
        ({"use_beam_search": True, "n": 3, "logprobs": 0}, "logprobs", "does not go with use_beam_search"),
        ({"use_beam_search": 1}, "use_beam_search", "true or false"),
        ({"logprobs": 21}, "logprobs", "between 0 and 20"),
        ({"logprobs": True}, "logprobs", "an integer"),
        ({"messages": MESSAGES}, "messages", "/v1/chat/completions"),
        ({"echo": "yes"}, "echo", "true or false"),
    ],
)
def test_a_completion_that_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str, says: str) -> None:
    error = refused(read_completion, PROMPT | fields)
    assert error.param == param
    assert says in error.message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"1", b"null", b"\xff", b'{"a": NaN}', b'{"a": 1e999}x', b"[" * 100_000, b'{"a":' * 50_000,
     b'{"n": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_object(body)
    assert caught.value.status == 400


def read_or_refused(read: Callable[[dict[str, Any]], Any], body: dict[str, Any]) -> None:
    """Tensors for the wire, or a 4xx in OpenAI's shape; whatever else is raised fails the test."""
    refusal = None
    try:
        tensors(read(body))
    except ApiError as error:
        refusal = error
    if refusal is not None:
        assert 400 <= refusal.status < 500
        assert json.loads(refusal.body())["error"]["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    [
        "model",
        "messages",
        "prompt",
        "n",
        "stop",
        "seed",
        "tools",
        "tool_choice",
        "logit_bias",
        "response_format",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "echo",
        "suffix",
        "best_of",
        "use_beam_search",
        "length_penalty",
        "early_stopping",
        "user",
        "metadata",
        "parallel_tool_calls",
        "stop_token_ids",
        "bad_words",
        "drafters",
        "cache_salt",
        "priority",
        "chat_template_kwargs",
        "modalities",
        "continue_final_message",
        "presence_penalty",
        "repetition_penalty",
        "min_tokens",
        "ignore_eos",
        "skip_special_tokens",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(NAMES, JSON, max_size=6), st.booleans())
def test_whatever_is_sent_is_read_or_refused_in_openais_shape(fields: dict[str, Any], is_chat: bool) -> None:
    body = parse_object(json.dumps((CHAT if is_chat else PROMPT) | fields).encode())
    read_or_refused(read_chat if is_chat else read_completion, body)


MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "name", "tool_calls", "tool_call_id", "refusal"]),
    st.sampled_from(["user", "assistant", "tool"]) | JSON,
    max_size=4,
)
TOOLS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.just("function") | JSON,
        "function": st.fixed_dictionaries({}, optional={"name": st.just("f") | JSON, "parameters": JSON}) | JSON,
    },
)


@settings(max_examples=300, deadline=None)
@given(st.lists(MESSAGE, max_size=3), st.lists(TOOLS | JSON, max_size=3), st.sampled_from(["auto", "required"]) | JSON)
def test_whatever_messages_and_tools_are_sent(messages: list[Any], tools: list[Any], choice: Any) -> None:
    body = parse_object(json.dumps(CHAT | {"messages": messages, "tools": tools, "tool_choice": choice}).encode())
    read_or_refused(read_chat, body)


def test_a_deeply_nested_value_is_refused_and_shown_short() -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    body = parse_object(json.dumps(CHAT | {"model": deep}).encode())
    assert len(refused(read_chat, body).message) < 500


def test_content_in_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    sent = tensors(read_chat(CHAT | {"messages": [{"role": "developer", "content": parts}]}))
    assert json.loads(sent["messages"])["messages"] == [{"role": "system", "content": "a\nb"}]


def test_calls_of_before_reach_the_template_as_objects() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "content": "2", "tool_call_id": "call_1"},
    ]
    sent = json.loads(tensors(read_chat(CHAT | {"messages": messages, "tools": [TOOL]}))["messages"])
    assert sent["messages"][1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}, "id": "call_1"}],
    }
    assert sent["tools"] == [TOOL]


def test_formats_become_guides() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    sent = tensors(read_chat(CHAT | {"response_format": wanted}))
    assert sent["guided_decoding_guide_type"] == "json_schema"
    assert json.loads(sent["guided_decoding_guide"]) == schema
    sent = tensors(read_chat(CHAT | {"response_format": {"type": "json_object"}}))
    assert sent["guided_decoding_guide_type"] == "json_schema"
    assert json.loads(sent["guided_decoding_guide"]) == {"type": "object"}
    assert "guided_decoding_guide_type" not in tensors(read_chat(CHAT | {"response_format": {"type": "text"}}))


def test_tool_choice() -> None:
    def read(choice: Any, **fields: Any) -> Any:
        return read_chat(CHAT | {"tools": [TOOL], "tool_choice": choice} | fields)

    assert read(None).tools.calling is Calling.MAYBE
    assert read("none").tools.calling is Calling.NEVER
    assert "tools" not in json.loads(tensors(read("none"))["messages"])
    required = json.loads(tensors(read("required"))["guided_decoding_guide"])
    assert required["minItems"] == 1
    assert required["items"]["anyOf"][0]["properties"]["name"] == {"const": "add"}
    one = json.loads(tensors(read("required", parallel_tool_calls=False))["guided_decoding_guide"])
    assert one["maxItems"] == 1
    other = TOOL | {"function": TOOL["function"] | {"name": "sub"}}
    only = {"type": "function", "function": {"name": "sub"}}
    for mode, calling in (("auto", Calling.MAYBE), ("required", Calling.ALWAYS)):
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [only]}}
        some = read(allowed, tools=[TOOL, other])
        assert (some.tools.calling, some.tools.names) == (calling, {"sub"})
        assert json.loads(tensors(some)["messages"])["tools"] == [other]
    named = read({"type": "function", "function": {"name": "add"}})
    assert named.tools.calling is Calling.ONE
    assert json.loads(tensors(named)["guided_decoding_guide"]) == TOOL["function"]["parameters"]


def test_what_openai_keeps_and_counts_is_ignored() -> None:
    read_chat(CHAT | {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "flex", "top_k": None})
    read_chat(CHAT | {"prompt_cache_key": "a", "prompt_cache_options": {"mode": "explicit"}})


def test_beams() -> None:
    """The best n of best_of; one beam is greedy drawing."""
    asked = read_completion(PROMPT | {"use_beam_search": True, "n": 2, "best_of": 3, "temperature": 0.5})
    sent = tensors(asked)
    assert struct.unpack("<i", sent["beam_width"]) == (3,)
    assert struct.unpack("<i", sent["num_return_sequences"]) == (2,)
    assert struct.unpack("<f", sent["len_penalty"]) == (1.0,)
    assert sent["early_stopping"] == b"\0"
    assert "temperature" not in sent
    assert "num_output_tokens" in asked.generation.outputs()
    sent = tensors(read_chat(CHAT | {"use_beam_search": True, "n": 1, "best_of": 2, "early_stopping": True}))
    assert sent["early_stopping"] == b"\1"
    assert struct.unpack("<i", sent["num_return_sequences"]) == (1,)
    alone = read_chat(CHAT | {"use_beam_search": True})
    assert not alone.generation.has_beams
    assert struct.unpack("<i", tensors(alone)["top_k"]) == (1,)


def test_every_beam_of_a_response_is_an_answer() -> None:
    response = service_pb2.ModelInferResponse()
    usage = json.dumps({"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 0})
    for name, texts in (("text_output", ["a", "né"]), ("finish_reason", ["stop", "length"]), ("usage", [usage])):
        response.outputs.add(name=name, datatype="BYTES", shape=[len(texts)])
        response.raw_output_contents.append(
            b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
        )
    response.outputs.add(name="num_output_tokens", datatype="INT32", shape=[1, 1])
    response.raw_output_contents.append(struct.pack("<i", 5))
    assert read_pieces(response) == [Piece(0, "a", "stop", Usage(3, 5, 0)), Piece(1, "né", "length")]
