"""llmapi's tensors there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.recording_channel import RecordingChannel
from trierarch.python_backend.errors import Cancelled, InvalidRequest
from trierarch.python_backend.triton.contract import LLMAPI, TENSORRT_LLM
from trierarch.python_backend.triton.incoming import Incoming
from trierarch.python_backend.triton.llmapi import INPUTS, OUTPUTS, outputs, tell_stopped, translated
from trierarch.python_backend.triton.refusals import HINTS, REFUSALS
from trierarch.python_backend.triton.responses import NamedArray
from trierarch.python_backend.triton.status import RelayedError, StatusCode

EVERYTHING = frozenset(tensor.name for tensor in LLMAPI.outputs)


def text(*values: str) -> Any:
    return np.array([value.encode() for value in values], np.object_)


def translate(requested: frozenset[str] = EVERYTHING, **arrays: Any) -> tuple[Incoming, RecordingChannel]:
    channel = RecordingChannel()
    sent = {"text_input": text("hello"), **arrays}
    incoming = Incoming(client_id="c", arrays=sent, requested=requested, timeout=2.0, channel=channel)
    return translated(incoming), channel


def test_every_tensor_is_translated_refused_or_a_hint() -> None:
    assert {tensor.name for tensor in LLMAPI.inputs} == INPUTS.keys() | (
        (REFUSALS.keys() | HINTS.keys()) & {tensor.name for tensor in LLMAPI.inputs}
    )
    assert OUTPUTS.keys() == EVERYTHING
    assert set(INPUTS.values()) <= {tensor.name for tensor in TENSORRT_LLM.inputs}
    assert set(OUTPUTS.values()) <= {tensor.name for tensor in TENSORRT_LLM.outputs}


def test_a_request_gets_a_batch_dimension_and_our_names() -> None:
    incoming, _ = translate(
        streaming=np.array([True]),
        sampling_param_top_k=np.array([5], np.int32),
        sampling_param_stop=text("a", "b"),
        return_cumulative_logprob=np.array([True]),
        lora_id=np.array([7], np.uint64),
        lora_ckpt_source=text("hf"),
    )
    assert {name: array.tolist() for name, array in incoming.arrays.items()} == {
        "text_input": [[b"hello"]],
        "stream": [[True]],
        "top_k": [[5]],
        "stop_words": [[b"a", b"b"]],
        "return_log_probs": [[True]],
        "lora_task_id": [[7]],
        "max_tokens": [[32]],
    }
    assert incoming.requested == set(OUTPUTS.values())
    assert (incoming.client_id, incoming.timeout) == ("c", 2.0)


def test_a_name_says_more_than_an_id() -> None:
    incoming, _ = translate(lora_id=np.array([7], np.uint64), lora_name=text("french"))
    assert incoming.arrays["lora_name"].tolist() == [[b"french"]]
    assert "lora_task_id" not in incoming.arrays


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({"lora_path": text("/etc/passwd")}, r"^lora_path is b'/etc/passwd': no path is taken from a client"),
        ({"sampling_param_best_of": np.array([2], np.int32)}, "^sampling_param_best_of is 2: of several answers none"),
        ({"image_url": text("http://x")}, "^image_url is b'http://x': this engine reads text alone"),
        ({"text_input": text("a", "b")}, "^text_input is 2: takes one text a request"),
        ({"text_input": text()}, "^text_input is 0: takes one text a request"),
    ],
)
def test_what_is_refused(sent: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        translate(**sent)


def test_responses_lose_the_batch_dimension() -> None:
    incoming, channel = translate()
    response: list[NamedArray] = [
        ("cum_log_probs", np.array([[-1.5]], np.float32)),
        ("text_output", text("hi")),
        ("finish_reason", text("stop")),
        ("stop_reason", text("")),
        ("kv_cache_reused_blocks", np.array([[3]], np.int32)),
        ("kv_cache_alloc_new_blocks", np.array([[1]], np.int32)),
        ("first_token_time_ns", np.array([[30]], np.int64)),
    ]
    incoming.channel.send(response, True)
    ((sent, is_final),) = channel.sent
    assert is_final
    assert {name: array.tolist() for name, array in sent.items()} == {
        "text_output": [b"hi"],
        "finish_reason": [b"stop"],
        "stop_reason": [b"None"],
        "kv_cache_alloc_new_blocks": [1],
        "first_token_time_ns": [30],
        "cumulative_logprob": [-1.5],
        "kv_cache_reused_block": [3],
        "kv_cache_missed_block": [1],
        "kv_cache_hit_rate": [0.75],
    }
    types = {tensor.name: str(tensor.dtype) for tensor in LLMAPI.outputs}
    numpy_types = {"FP32": "float32", "INT32": "int32", "INT64": "int64", "STRING": "object"}
    assert all(str(array.dtype) == numpy_types[types[name]] for name, array in sent.items())


def test_only_what_the_client_wants_is_sent() -> None:
    assert [
        name for name, _ in outputs({"text_output": text("hi"), "stop_reason": text("x")}, frozenset({"stop_reason"}))
    ] == ["stop_reason"]


def test_errors_name_what_the_client_sent() -> None:
    incoming, channel = translate()
    incoming.channel.fail(RelayedError(StatusCode.INVALID_ARG, "max_tokens is 0: must be at least 1"))
    tell_stopped(incoming.channel)
    assert [str(error) for error in channel.errors] == [
        "sampling_param_max_tokens is 0: must be at least 1",
        "Request cancelled by client",
    ]
    assert isinstance(channel.errors[1], Cancelled)
    assert incoming.channel.is_cancelled()
