"""The tensors of TensorRT-LLM's `llmapi` model as those of `tensorrt_llm`, there and back. Arrays in, arrays out.

It has no batch dimension, says other names, and streams the text so far. What its clients name and no engine here does is
refused by `refusals`; `lora_path` among it: no path comes from a client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from trierarch.python_backend.errors import Cancelled, InvalidRequest
from trierarch.python_backend.triton.channel import Channel
from trierarch.python_backend.triton.incoming import Incoming
from trierarch.python_backend.triton.inputs import Array, Inputs
from trierarch.python_backend.triton.refusals import refuse_unsupported
from trierarch.python_backend.triton.responses import NamedArray
from trierarch.python_backend.triton.status import RelayedError

DEFAULT_MAX_TOKENS: Final = 32
"""TensorRT-LLM's, where a client does not say."""

INPUTS: Final = {
    "text_input": "text_input",
    "streaming": "stream",
    "sampling_param_temperature": "temperature",
    "sampling_param_top_k": "top_k",
    "sampling_param_top_p": "top_p",
    "sampling_param_frequency_penalty": "frequency_penalty",
    "sampling_param_presence_penalty": "presence_penalty",
    "sampling_param_max_tokens": "max_tokens",
    "sampling_param_stop": "stop_words",
    "sampling_param_seed": "seed",
    "sampling_param_exclude_input_from_output": "exclude_input_in_output",
    "sampling_param_return_perf_metrics": "return_perf_metrics",
    "return_finish_reason": "return_finish_reason",
    "return_stop_reason": "return_stop_reason",
    "return_cumulative_logprob": "return_log_probs",
    "stop": "stop",
    "lora_id": "lora_task_id",
    "lora_name": "lora_name",
}
"""llmapi's input -> tensorrt_llm's."""
_SAME: Final = (
    "text_output finish_reason stop_reason kv_cache_alloc_new_blocks kv_cache_alloc_total_blocks arrival_time_ns "
    "first_scheduled_time_ns first_token_time_ns last_token_time_ns acceptance_rate total_accepted_draft_tokens "
    "total_draft_tokens"
)
OUTPUTS: Final = {
    **{name: name for name in _SAME.split()},
    "cumulative_logprob": "cum_log_probs",
    "kv_cache_reused_block": "kv_cache_reused_blocks",
    "kv_cache_missed_block": "kv_cache_alloc_new_blocks",
    "kv_cache_hit_rate": "kv_cache_reused_blocks",
}
"""llmapi's output -> the output of tensorrt_llm that it is made of."""
_GIVEN_BACK: Final = {theirs: ours for ours, theirs in INPUTS.items()}


def translated(incoming: Incoming) -> Incoming:
    """A request of llmapi's as one of tensorrt_llm's; what is sent to its channel goes the way back.

    Raises:
        InvalidRequest: it asks for what no model here does, or for several texts at once.
    """
    batched = {name: array.reshape(1, -1) for name, array in incoming.arrays.items()}
    inputs = Inputs(batched)
    refuse_unsupported(inputs)
    arrays = {INPUTS[name]: array for name, array in batched.items() if name in INPUTS}
    if not inputs.flag("stop"):
        if (num_texts := batched.get("text_input", np.empty(0)).size) != 1:
            raise InvalidRequest("text_input", num_texts, "takes one text a request")
        arrays.setdefault("max_tokens", np.array([[DEFAULT_MAX_TOKENS]], np.int32))
    if inputs.text("lora_name"):
        arrays.pop("lora_task_id", None)  # the id is what TensorRT-LLM caches the adapter under
    return replace(
        incoming,
        arrays=arrays,
        requested=frozenset(OUTPUTS[name] for name in incoming.requested if name in OUTPUTS),
        channel=_Translating(incoming.channel, incoming.requested),
    )


def outputs(arrays: Mapping[str, Array], requested: frozenset[str]) -> list[NamedArray]:
    """A response of tensorrt_llm's as llmapi's: of rank 1, and typed, where llmapi itself writes numbers as strings."""
    made = [(name, _MADE.get(name, _flat(theirs))(arrays)) for name, theirs in OUTPUTS.items() if theirs in arrays]
    return [(name, array) for name, array in made if name in requested]


def tell_stopped(channel: Channel) -> None:
    """See Route.tell_stopped: here both requests, the one that was stopped and the one that asked for it, end in error."""
    channel.fail(Cancelled("Request cancelled by client"))


class _Translating:
    """A Channel that takes tensorrt_llm's responses and sends llmapi's."""

    def __init__(self, channel: Channel, requested: frozenset[str]) -> None:
        self._channel = channel
        self._requested = requested

    def send(self, arrays: Sequence[NamedArray], is_final: bool) -> None:
        """See Channel.send."""
        self._channel.send(outputs(dict(arrays), self._requested), is_final)

    def fail(self, error: BaseException) -> None:
        """See Channel.fail. A tensor is called what the client calls it."""
        if isinstance(error, RelayedError):
            name, is_, rest = str(error).partition(" is ")
            error = RelayedError(error.code, _GIVEN_BACK.get(name, name) + is_ + rest)
        self._channel.fail(error)

    def is_cancelled(self) -> bool:
        """See Channel.is_cancelled."""
        return self._channel.is_cancelled()


def _flat(name: str) -> Callable[[Mapping[str, Array]], Array]:
    return lambda arrays: arrays[name].reshape(-1)


def _stop_reason(arrays: Mapping[str, Array]) -> Array:
    """The stop string; llmapi says None where there is none."""
    return np.array([reason or b"None" for reason in arrays["stop_reason"].reshape(-1)], np.object_)


def _hit_rate(arrays: Mapping[str, Array]) -> Array:
    names = ("kv_cache_reused_blocks", "kv_cache_alloc_new_blocks")
    reused, new = (arrays[name].reshape(-1).astype(np.float32) for name in names)
    rate: Array = reused / np.maximum(reused + new, 1)
    return rate


_MADE: Final[dict[str, Callable[[Mapping[str, Array]], Array]]] = {
    "stop_reason": _stop_reason,
    "kv_cache_hit_rate": _hit_rate,
}
