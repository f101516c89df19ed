"""The vLLM backend's tensors there and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from support.recording_channel import RecordingChannel
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.triton.contract import TENSORRT_LLM, VLLM
from trierarch.python_backend.triton.incoming import Incoming
from trierarch.python_backend.triton.refusals import REFUSALS
from trierarch.python_backend.triton.status import RelayedError, StatusCode
from trierarch.python_backend.triton.vllm import FORWARDED, INPUTS, OUTPUTS, translated
from trierarch.python_backend.triton.vllm_parameters import NAMES, PARAMETERS, SOURCE

EVERYTHING = frozenset(tensor.name for tensor in VLLM.outputs)
WANTED = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")
NOTHING_ELSE = {"max_tokens": [[16]], "temperature": [[1.0]], "top_p": [[1.0]], "exclude_input_in_output": [[False]]}


def text(*values: str) -> Any:
    return np.array([value.encode() for value in values], np.object_)


def translate(parameters: object = None, beside: Any = None, **arrays: Any) -> tuple[Incoming, RecordingChannel]:
    channel = RecordingChannel()
    sent = {"text_input": text("hello"), **arrays}
    if parameters is not None:
        sent[SOURCE] = text(parameters if isinstance(parameters, str) else json.dumps(parameters))
    incoming = Incoming(
        client_id="c", arrays=sent, requested=EVERYTHING, timeout=2.0, channel=channel, parameters=beside or {}
    )
    return translated(incoming), channel


def asked(**parameters: Any) -> dict[str, Any]:
    """The tensors that parameters alone come to."""
    incoming, _ = translate(parameters)
    arrays = {name: array.tolist() for name, array in incoming.arrays.items()}
    assert arrays.pop("text_input") == [[b"hello"]]
    return arrays


def test_every_tensor_and_parameter_is_translated_or_refused() -> None:
    inputs = {tensor.name for tensor in VLLM.inputs}
    assert inputs == INPUTS.keys() | {SOURCE, "return_logprobs"} | (REFUSALS.keys() & inputs)
    assert OUTPUTS.keys() == EVERYTHING
    ours = {tensor.name: tensor for tensor in TENSORRT_LLM.inputs}
    assert ours.keys() >= FORWARDED
    assert set(OUTPUTS.values()) <= {tensor.name for tensor in TENSORRT_LLM.outputs}
    types = {"INT32": np.int32, "FP32": np.float32, "UINT64": np.uint64, "BOOL": np.bool_, "STRING": np.object_}
    for parameter in PARAMETERS.values():
        if parameter.tensor:
            assert types[ours[parameter.tensor].dtype] is parameter.dtype


def test_defaults_are_vllms() -> None:
    assert asked() == NOTHING_ELSE


def test_strings_of_values_are_values() -> None:
    """As the backend's own client sends them."""
    said = {"temperature": "0.1", "top_p": "0.95", "max_tokens": "100", "min_tokens": "2", "seed": "7", "top_k": "-1"}
    assert asked(**said, ignore_eos="true", skip_special_tokens=False) == {
        **NOTHING_ELSE,
        "temperature": [[pytest.approx(0.1)]],
        "top_p": [[pytest.approx(0.95)]],
        "max_tokens": [[100]],
        "min_tokens": [[2]],
        "seed": [[7]],
        "top_k": [[0]],
        "end_id": [[-1]],
        "skip_special_tokens": [[False]],
    }


@pytest.mark.parametrize("temperature", ["0", 0, 1e-6])
def test_no_temperature_takes_the_likeliest(temperature: object) -> None:
    arrays = asked(temperature=temperature, top_p="1", min_p=0.1)
    assert (arrays["top_k"], arrays["temperature"]) == ([[1]], [[1.0]])
    assert not arrays.keys() & {"top_p", "min_p"}


def test_words_bias_and_adapters() -> None:
    arrays = asked(stop=["a", "b"], bad_words=["c"], logit_bias={"5": 1.5, "9": -2}, lora_name="french", n=1)
    assert arrays["stop_words"] == [[b"a", b"b"]]
    assert asked(stop="a")["stop_words"] == [[b"a"]]
    assert arrays["bad_words"] == [[b"c"]]
    assert (arrays["logit_bias_ids"], arrays["logit_bias_values"]) == ([[5, 9]], [[1.5, -2.0]])
    assert arrays["lora_name"] == [[b"french"]]


@pytest.mark.parametrize(
    ("wanted", "kind", "guide"),
    [
        ({"json": {"type": "integer"}}, "json_schema", '{"type": "integer"}'),
        ({"json": '{"type": "integer"}'}, "json_schema", '{"type": "integer"}'),
        ({"json_object": True}, "json", ""),
        ({"regex": "[ab]"}, "regex", "[ab]"),
        ({"grammar": 'root ::= "a"'}, "ebnf_grammar", 'root ::= "a"'),
        ({"choice": ["Positive", 'a "b"'], "regex": None}, "ebnf_grammar", 'root ::= "Positive" | "a \\"b\\""'),
    ],
)
def test_structured_outputs_are_guides(wanted: object, kind: str, guide: str) -> None:
    for said in (wanted, json.dumps(wanted)):
        arrays = asked(structured_outputs=said)
        assert arrays["guided_decoding_guide_type"] == [[kind.encode()]]
        assert arrays["guided_decoding_guide"] == [[guide.encode()]]


def test_what_stands_beside_the_tensors_counts_where_no_tensor_does() -> None:
    incoming, _ = translate(beside={"max_tokens": "3", "temperature": 0.5})
    assert incoming.arrays["max_tokens"].tolist() == [[3]]
    incoming, _ = translate({"max_tokens": 4}, beside={"max_tokens": "3", "sequence": 1})
    assert incoming.arrays["max_tokens"].tolist() == [[4]]


@pytest.mark.parametrize(
    ("parameters", "sent", "says"),
    [
        ("{", {}, r"sampling_parameters is '\{': must be a JSON object"),
        ("[1]", {}, "must be a JSON object"),
        ({"beams": 3}, {}, "sampling_parameters.beams is 3: known are max_tokens, min_tokens"),
        ({"max_tokens": "many"}, {}, "sampling_parameters.max_tokens is 'many': must be an integer"),
        ({"max_tokens": 2**40}, {}, "must be an integer of 32 bits"),
        ({"max_tokens": True}, {}, "must be an integer"),
        ({"temperature": [1]}, {}, "sampling_parameters.temperature is .*must be a number"),
        ({"seed": -1}, {}, "must be between 0 and"),
        ({"logprobs": -1}, {}, "sampling_parameters.logprobs is -1: must be at least 0"),
        ({"stop": [3]}, {}, "sampling_parameters.stop is 3: must be a string"),
        ({"ignore_eos": "perhaps"}, {}, "must be true or false"),
        ({"logit_bias": [1]}, {}, "must be an object of token ids"),
        ({"n": 2}, {}, "sampling_parameters.n is 2: a request has one answer here"),
        ({"best_of": "2"}, {}, "sampling_parameters.best_of is '2'"),
        ({"stop_token_ids": [5]}, {}, "name the tokens' text in stop"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, {}, "takes one of json, json_object, regex"),
        ({"structured_outputs": {"choice": []}}, {}, "choice is a list of strings"),
        ({"structured_outputs": "["}, {}, "must be a JSON object"),
        (None, {"image": text("x")}, "image is .*reads text alone"),
        (None, {"embedding_request": text("{}")}, "embedding_request is .*no embeddings"),
        (None, {"text_input": text("a", "b")}, "text_input is 2: takes one text a request"),
        (
            None,
            {"stream": np.array([True]), "exclude_input_in_output": np.array([False])},
            "exclude_input_in_output is False: a stream has no prompt in it",
        ),
    ],
)
def test_what_is_refused(parameters: object, sent: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        translate(parameters, **sent)


def test_responses_are_the_vllm_backends() -> None:
    flags = {f"return_{name}": np.array([True]) for name in WANTED}
    incoming, channel = translate({"logprobs": 1}, **flags)
    assert incoming.requested == {*OUTPUTS.values(), "token_bytes"}
    assert incoming.arrays["num_log_probs"].tolist() == [[1]]
    drawn = [
        {"token_id": 5, "logprob": -0.5, "top": [[5, -0.5]]},
        {"token_id": 6, "logprob": -2.0, "top": [[7, -0.1]]},
    ]
    response = [
        ("text_output", text("hé")),
        ("cum_log_probs", np.array([[-2.5]], np.float32)),
        ("top_log_probs", text(json.dumps(drawn))),
        ("token_bytes", text(json.dumps({"5": "h", "6": "Ã©", "7": "x"}))),
        ("num_input_tokens", np.array([[3]], np.int32)),
        ("num_output_tokens", np.array([[2]], np.int32)),
    ]
    incoming.channel.send(response, False)
    incoming.channel.send([*response, ("finish_reason", text("length"))], True)
    incoming.channel.send([], True)
    (first, _), (last, is_final), closing = channel.sent
    assert closing == ({}, True)
    assert is_final
    assert (first["finish_reason"].tolist(), last["finish_reason"].tolist()) == ([b"None"], [b"length"])
    assert first["text_output"].tolist() == ["hé".encode()]
    assert first["cumulative_logprob"].tolist() == [-2.5]
    assert (first["num_input_tokens"].tolist(), first["num_output_tokens"].tolist()) == ([3], [2])
    assert first["num_output_tokens"].dtype == np.uint32
    assert json.loads(first["logprobs"][0]) == [
        {"5": {"logprob": -0.5, "rank": 1, "decoded_token": "h"}},
        {
            "6": {"logprob": -2.0, "rank": None, "decoded_token": "é"},
            "7": {"logprob": -0.1, "rank": 1, "decoded_token": "x"},
        },
    ]


def test_only_what_is_asked_for_is_sent() -> None:
    incoming, channel = translate(return_logprobs=np.array([True]), return_finish_reason=np.array([False]))
    incoming.channel.send([("text_output", text("a")), ("num_output_tokens", np.array([[1]], np.int32))], False)
    ((sent, _),) = channel.sent
    assert {name: array.tolist() for name, array in sent.items()} == {"text_output": [b"a"], "logprobs": [b"null"]}


def test_errors_name_what_the_client_sent() -> None:
    incoming, channel = translate()
    incoming.channel.fail(RelayedError(StatusCode.INVALID_ARG, "max_tokens is 0: must be at least 1"))
    assert [str(error) for error in channel.errors] == ["sampling_parameters.max_tokens is 0: must be at least 1"]
    assert NAMES["stop_words"] == "sampling_parameters.stop"
