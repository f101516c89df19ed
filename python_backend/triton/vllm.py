"""The tensors of Triton's vLLM backend as those of `tensorrt_llm`, there and back. Arrays in, arrays out.

It has no batch dimension, and says how to draw in one JSON object, `sampling_parameters`, or in the request's own parameters;
values may be strings of what they are. Defaults are vLLM's: it draws from the whole distribution at temperature 1, and says 16
tokens. `vllm_parameters` has what becomes of each of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.triton.channel import Channel
from trierarch.python_backend.triton.incoming import Incoming
from trierarch.python_backend.triton.inputs import Array, Inputs
from trierarch.python_backend.triton.refusals import refuse_unsupported
from trierarch.python_backend.triton.responses import NamedArray
from trierarch.python_backend.triton.status import RelayedError
from trierarch.python_backend.triton.vllm_parameters import NAMES, PARAMETERS, SOURCE, tensors_of

_SAME: Final = ("text_input", "stream", "return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
INPUTS: Final = {
    **{name: name for name in _SAME},
    "exclude_input_in_output": "exclude_input_in_output",
    "return_cumulative_logprob": "return_log_probs",
}
"""The vLLM backend's input -> tensorrt_llm's; besides, `sampling_parameters` and `return_logprobs`."""
OUTPUTS: Final = {
    "text_output": "text_output",
    "finish_reason": "finish_reason",
    "cumulative_logprob": "cum_log_probs",
    "logprobs": "top_log_probs",
    "num_input_tokens": "num_input_tokens",
    "num_output_tokens": "num_output_tokens",
}
"""The vLLM backend's output -> the output of tensorrt_llm that it is made of."""
_ASKED_BY: Final = {
    "finish_reason": "return_finish_reason",
    "cumulative_logprob": "return_cumulative_logprob",
    "logprobs": "return_logprobs",
    "num_input_tokens": "return_num_input_tokens",
    "num_output_tokens": "return_num_output_tokens",
}
"""Output -> the input that asks for it."""
FORWARDED: Final = frozenset(INPUTS.values()) | frozenset(NAMES) | {"return_token_bytes"}
"""Inputs of tensorrt_llm that a translated request may have."""


def translated(incoming: Incoming) -> Incoming:
    """A request of the vLLM backend's as one of tensorrt_llm's; what is sent to its channel goes the way back.

    Raises:
        InvalidRequest: it asks for what no model here does, or says how to draw in words that are not known.
    """
    batched = {name: array.reshape(1, -1) for name, array in incoming.arrays.items()}
    inputs = Inputs(batched)
    refuse_unsupported(inputs)
    arrays = {INPUTS[name]: array for name, array in batched.items() if name in INPUTS}
    if (num_texts := len(inputs.texts("text_input"))) != 1:
        raise InvalidRequest("text_input", num_texts, "takes one text a request")
    excludes_prompt = inputs.flag("exclude_input_in_output")
    if inputs.flag("stream") and excludes_prompt is False:
        raise InvalidRequest(
            "exclude_input_in_output", False, "a stream has no prompt in it; send True or leave it out"
        )
    arrays["exclude_input_in_output"] = np.array([[bool(excludes_prompt)]])
    sampling = _sampling_parameters(inputs, incoming.parameters)
    arrays |= tensors_of(sampling)
    wants = frozenset(
        name
        for name in OUTPUTS
        if name in incoming.requested and (name not in _ASKED_BY or inputs.flag(_ASKED_BY[name]))
    )
    num_logprobs = sampling.get("logprobs")
    requested = {OUTPUTS[name] for name in wants}
    if "logprobs" in wants and num_logprobs is not None:
        # Whether a token is the likeliest is seen from the likeliest.
        arrays["num_log_probs"] = np.array([[max(1, num_logprobs)]], np.int32)
        arrays["return_token_bytes"] = np.array([[True]])
        requested.add("token_bytes")
    return replace(
        incoming,
        arrays=arrays,
        requested=frozenset(requested),
        channel=_Translating(incoming.channel, wants, num_logprobs),
    )


def _sampling_parameters(inputs: Inputs, beside: Mapping[str, Any]) -> dict[str, Any]:
    """What the tensor says, or where there is none, the request's own parameters: name -> value, read.

    Raises:
        InvalidRequest: it is no JSON object, or a value is not known or cannot be read.
    """
    text = inputs.text(SOURCE)
    named: Any = dict(beside)
    if text is not None:
        try:
            named = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(SOURCE, text, f"must be a JSON object ({error})") from None
    if not isinstance(named, dict):
        raise InvalidRequest(SOURCE, text, "must be a JSON object")
    if unknown := sorted(set(named) - PARAMETERS.keys()):
        raise InvalidRequest(f"{SOURCE}.{unknown[0]}", named[unknown[0]], f"known are {', '.join(PARAMETERS)}")
    read = {name: PARAMETERS[name].read(name, value) for name, value in named.items() if value is not None}
    return {name: value for name, value in read.items() if value is not None}


class _Translating:
    """A Channel that takes tensorrt_llm's responses and sends the vLLM backend's."""

    def __init__(self, channel: Channel, wants: frozenset[str], num_logprobs: int | None) -> None:
        self._channel = channel
        self._wants = wants
        self._num_logprobs = num_logprobs

    def send(self, arrays: Sequence[NamedArray], is_final: bool) -> None:
        """See Channel.send. An empty response only closes the request."""
        made = outputs(dict(arrays), self._wants, self._num_logprobs) if arrays else []
        self._channel.send(made, is_final)

    def fail(self, error: BaseException) -> None:
        """See Channel.fail. A tensor is called what the client calls it."""
        if isinstance(error, RelayedError):
            name, is_, rest = str(error).partition(" is ")
            error = RelayedError(error.code, NAMES.get(name, name) + is_ + rest)
        self._channel.fail(error)

    def is_cancelled(self) -> bool:
        """See Channel.is_cancelled."""
        return self._channel.is_cancelled()


def outputs(arrays: Mapping[str, Array], wants: frozenset[str], num_logprobs: int | None) -> list[NamedArray]:
    """A response of tensorrt_llm's as the vLLM backend's: of rank 1, and with a reason in each, `None` before the last."""
    made: dict[str, Array] = {}
    if "text_output" in arrays:
        made["text_output"] = arrays["text_output"].reshape(-1)
    made["finish_reason"] = arrays.get("finish_reason", np.array([b"None"], np.object_)).reshape(-1)
    if "cum_log_probs" in arrays:
        made["cumulative_logprob"] = arrays["cum_log_probs"].reshape(-1)
    made["logprobs"] = np.array([_logprobs(arrays, num_logprobs)], np.object_)
    for name in ("num_input_tokens", "num_output_tokens"):
        if name in arrays:
            made[name] = arrays[name].reshape(-1).astype(np.uint32)
    return [(name, array) for name, array in made.items() if name in wants]


def _logprobs(arrays: Mapping[str, Array], num_logprobs: int | None) -> bytes:
    """JSON: for each token the drawn one and its rivals: id -> log-probability, rank and text.

    A drawn token that is not among the likeliest has no rank here, since none is counted; `null` where none were asked for.
    """
    if num_logprobs is None or "top_log_probs" not in arrays:
        return b"null"
    texts = json.loads(arrays["token_bytes"][0])
    told = []
    for token in json.loads(arrays["top_log_probs"][0]):
        ranked = {token_id: (logprob, rank) for rank, (token_id, logprob) in enumerate(token["top"], start=1)}
        drawn = token["token_id"]
        shown = {drawn: ranked.get(drawn, (token["logprob"], None))}
        shown |= {token_id: held for token_id, held in ranked.items() if held[1] <= num_logprobs}
        told.append(
            {
                token_id: {
                    "logprob": logprob,
                    "rank": rank,
                    "decoded_token": texts[str(token_id)].encode("latin-1").decode("utf-8", "replace"),
                }
                for token_id, (logprob, rank) in shown.items()
            }
        )
    return json.dumps(told).encode()
