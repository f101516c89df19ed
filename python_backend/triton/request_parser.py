"""A Triton request's arrays as what the text layer and the reply need. Knows nothing of Triton but names and shapes.

Two doors lead in: token tensors (`input_ids`, `request_output_len`, `runtime_top_k`, ...) and the ensemble's text
tensors (`text_input`, `max_tokens`, `top_k`, ...). A request goes through one of them; options that exist under two
names are taken under either, but not under both with different values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypedDict, TypeVar

import numpy as np

from trierarch.python_backend.beams.params import BeamParams
from trierarch.python_backend.errors import InvalidRequest, UnknownAdapter
from trierarch.python_backend.request import SamplingParams, SpeculationParams, check_token_ids
from trierarch.python_backend.text.chat import Chat
from trierarch.python_backend.text.text_request import TextRequest
from trierarch.python_backend.triton import guide_inputs
from trierarch.python_backend.triton.adapter_inputs import (
    BASE_MODEL,
    BY_NAME,
    BY_TASK,
    AdapterInput,
    read_adapter,
    unknown_task,
)
from trierarch.python_backend.triton.beam_inputs import read_beams
from trierarch.python_backend.triton.inputs import Array, Inputs, batch_size, either
from trierarch.python_backend.triton.refusals import refuse_unsupported
from trierarch.python_backend.triton.reply import ReplyOptions
from trierarch.python_backend.triton.responses import PERF_METRICS
from trierarch.python_backend.triton.retention_inputs import NAMES as RETENTION_NAMES
from trierarch.python_backend.triton.retention_inputs import read_retention
from trierarch.python_backend.triton.speculation_inputs import read_speculation

Value = TypeVar("Value")

TEXT_NAMES: Final = {
    "prompt": "text_input",
    "number of prompt tokens": "number of tokens of text_input",
    "prompt_token_ids": "text_input",
    "is_chat": "apply_chat_template",
    "stop": "stop_words",
    "bias_words": "embedding_bias_words",
    "logit_bias": "embedding_bias_words",
    "n": "num_return_sequences",
    "logprobs": "num_log_probs",
    "prompt_logprobs": "num_prompt_log_probs",
    "end_ids": "end_id",
    "adapter": BY_NAME,
    "draft_token_ids": "draft_input_ids",
    "guide": guide_inputs.TEXT,
    **RETENTION_NAMES,
}
"""Our name of a field -> the text tensor it came from, where they differ."""
TOKEN_NAMES: Final = {
    **TEXT_NAMES,
    "prompt": "input_ids",
    "number of prompt tokens": "number of tokens of input_ids",
    "prompt_token_ids": "input_ids",
    "max_tokens": "request_output_len",
    "length_penalty": "len_penalty",
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "stop_words": "stop_words_list",
    "bad_words": "bad_words_list",
    "logit_bias": "embedding_bias",
}
"""The same for the token tensors."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a request: what to generate, and how to tell the client."""

    request: TextRequest
    reply: ReplyOptions
    adapter: AdapterInput = BASE_MODEL

    @property
    def num_responses(self) -> int:
        """Where it does not stream: one for each sequence, but one for all beams."""
        return self.request.sampling.n if self.request.beams is None else 1

    def client_named(self, error: InvalidRequest) -> InvalidRequest:
        """The error of this row, about the tensor that the client sent."""
        if error.field != "adapter" or self.adapter.tensor != BY_TASK:
            return client_named(error, self.reply.is_text)
        if isinstance(error, UnknownAdapter) and self.adapter.upload is None:
            return unknown_task(self.adapter.name)
        return error.renamed(BY_TASK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What comes with a request beside its tensors."""

    request_id: str
    """Unique among live requests; rows are told apart by a suffix."""
    requested: frozenset[str]
    """Outputs the client wants to see."""
    timeout: float | None = None
    """Seconds the client gives the request."""


@dataclass(frozen=True, slots=True)
class RequestParser:
    """Reads requests for one model."""

    vocab_size: int
    is_decoupled: bool
    exclude_input_in_output: bool
    """The default where a request does not say."""

    def parse(self, arrays: Mapping[str, Array], envelope: Envelope) -> tuple[Row, ...]:
        """The rows of a request.

        Raises:
            InvalidRequest: a tensor is missing, misshapen, out of range, contradictory or not honoured here.
        """
        num_rows = batch_size(arrays)
        rows = tuple(self._parse_row(Inputs(arrays, index), envelope, index, num_rows) for index in range(num_rows))
        num_replies = sum(row.num_responses for row in rows)
        if not self.is_decoupled and num_replies > 1:
            name = "num_return_sequences" if num_rows == 1 else "batch size"
            raise InvalidRequest(name, num_replies, "this model is not decoupled and sends one answer a request")
        return rows

    def _parse_row(self, inputs: Inputs, envelope: Envelope, index: int, num_rows: int) -> Row:
        refuse_unsupported(inputs)
        is_text = "text_input" in inputs or "messages" in inputs
        adapter = read_adapter(inputs)
        try:
            request = self._request(inputs, is_text, envelope, index, adapter.name)
        except InvalidRequest as error:
            raise client_named(error, is_text) from None
        is_streaming = either(inputs.flag, inputs, "streaming", "stream") or False
        if is_streaming and not self.is_decoupled:
            name = "stream" if "stream" in inputs else "streaming"
            raise InvalidRequest(name, True, "this model is not decoupled and sends one answer a request")
        excludes_prompt = _default(inputs.flag("exclude_input_in_output"), self.exclude_input_in_output)
        reply = ReplyOptions(
            is_text=is_text,
            is_streaming=is_streaming,
            echo=not is_streaming and not excludes_prompt,
            outputs=_outputs(inputs, envelope.requested, is_text, num_rows, request),
            batch_index=index,
            tokenize_only=inputs.flag("tokenize_only") or False,
        )
        return Row(request, reply, adapter)

    def _request(self, inputs: Inputs, is_text: bool, envelope: Envelope, index: int, adapter: str) -> TextRequest:
        beams = read_beams(inputs)
        sampling = self._sampling(inputs, beams)
        return TextRequest(
            request_id=f"{envelope.request_id}.{index}",
            prompt=self._prompt(inputs, is_text),
            sampling=sampling,
            beams=beams,
            stop=_nonempty(inputs.texts("stop_words")),
            bad_words=_nonempty(inputs.texts("bad_words")),
            bias_words=_bias_words(inputs),
            is_chat=inputs.flag("apply_chat_template") or False,
            chat=_chat(inputs),
            add_special_tokens=_default(inputs.flag("add_special_tokens"), True),
            skip_special_tokens=_default(inputs.flag("skip_special_tokens"), True),
            fit_max_tokens=inputs.flag("fit_max_tokens") or False,
            return_token_bytes=inputs.flag("return_token_bytes") or False,
            adapter=adapter,
            cache_salt=inputs.text("cache_salt") or "",
            priority=inputs.integer("priority") or 0,
            speculation=self._speculation(inputs, sampling.max_tokens),
            retention=read_retention(inputs),
            timeout=envelope.timeout,
        )

    def _prompt(self, inputs: Inputs, is_text: bool) -> str | tuple[int, ...]:
        if is_text:
            if "input_ids" in inputs:
                given = "text_input" if "text_input" in inputs else "messages"
                raise InvalidRequest("input_ids", f"given with {given}", "send one of them")
            return inputs.text("text_input") or ""
        tokens = inputs.integers("input_ids")
        if tokens is None:
            raise InvalidRequest("input_ids", None, "a request needs input_ids, or text_input")
        length = inputs.integer("input_lengths")
        if length is not None and not 0 < length <= len(tokens):
            raise InvalidRequest(
                "input_lengths", length, f"must be between 1 and the {len(tokens)} tokens of input_ids"
            )
        tokens = tokens[:length]
        check_token_ids("input_ids", tokens, self.vocab_size)
        return tokens

    def _speculation(self, inputs: Inputs, max_tokens: int) -> SpeculationParams:
        speculation = read_speculation(inputs)
        draft = speculation.draft_token_ids
        check_token_ids("draft_input_ids", draft, self.vocab_size)
        return replace(speculation, draft_token_ids=draft[:max_tokens])  # none behind these can be right

    def _sampling(self, inputs: Inputs, beams: BeamParams | None) -> SamplingParams:
        max_tokens = either(inputs.integer, inputs, "request_output_len", "max_tokens")
        if max_tokens is None:
            raise InvalidRequest("max_tokens", None, "say how many tokens to generate")
        num_logprobs = inputs.integer("num_log_probs")
        if num_logprobs is None and inputs.flag("return_log_probs"):
            num_logprobs = 0
        end_id = inputs.integer("end_id")
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=_default(inputs.integer("min_tokens"), 0),
            repetition_penalty=_default(inputs.number("repetition_penalty"), 1.0),
            presence_penalty=_default(inputs.number("presence_penalty"), 0.0),
            frequency_penalty=_default(inputs.number("frequency_penalty"), 0.0),
            logit_bias=self._logit_bias(inputs),
            bad_words=inputs.words("bad_words_list"),
            stop_words=inputs.words("stop_words_list"),
            seed=inputs.integer("seed"),
            # The contract's -1 names no token, so nothing ends the sequence but its length and stop words.
            end_ids=None if end_id is None else () if end_id == -1 else (end_id,),
            logprobs=num_logprobs,
            prompt_logprobs=inputs.integer("num_prompt_log_probs"),
            n=_default(inputs.integer("num_return_sequences"), 1 if beams is None else beams.width),
            guide=guide_inputs.read_guide(inputs),
            return_context_logits=inputs.flag("return_context_logits") or False,
            return_generation_logits=inputs.flag("return_generation_logits") or False,
            return_embedding=inputs.flag("return_embedding") or False,
            **_drawing(inputs),
        )

    def _logit_bias(self, inputs: Inputs) -> dict[int, float]:
        bias = inputs.numbers("embedding_bias")
        listed = _listed_bias(inputs)
        if bias is None:
            return listed
        if listed:
            raise InvalidRequest("logit_bias_ids", "given with embedding_bias", "send one of them")
        if bias.size != self.vocab_size:
            raise InvalidRequest("embedding_bias", bias.size, f"must have one value a token: {self.vocab_size}")
        return {int(token): float(bias[token]) for token in np.flatnonzero(bias)}


class _Drawing(TypedDict):
    """The fields of SamplingParams that say how much of the distribution is drawn from."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float


def client_named(error: InvalidRequest, is_text: bool) -> InvalidRequest:
    """The error, about the tensor the client sent: `logit_bias[7]` becomes `embedding_bias[7]`."""
    names = TEXT_NAMES if is_text else TOKEN_NAMES
    field, bracket, rest = error.field.partition("[")
    return error.renamed(names.get(field, field) + bracket + rest)


def _drawing(inputs: Inputs) -> _Drawing:
    """The contract's rule: greedy, whatever the temperature, until top_k, top_p or min_p ask for more than one token.

    top_k 0 or top_p 1.0 therefore mean "draw from the whole distribution"; both at 0 mean greedy.
    """
    temperature = _default(inputs.number("temperature"), 1.0)
    top_k = either(inputs.integer, inputs, "runtime_top_k", "top_k")
    top_p = either(inputs.number, inputs, "runtime_top_p", "top_p")
    min_p = _default(inputs.number("min_p"), 0.0)
    has_top_p = top_p is not None and top_p != 0.0
    has_top_k = top_k is not None and top_k != 1 and not (top_k == 0 and top_p == 0.0)
    if not (has_top_k or has_top_p or min_p):
        top_k = 1
    return {
        "temperature": temperature,
        "top_k": _default(top_k, 0),
        "top_p": top_p if top_p else 1.0,
        "min_p": min_p,
    }


def _outputs(
    inputs: Inputs, requested: frozenset[str], is_text: bool, num_rows: int, request: TextRequest
) -> frozenset[str]:
    """Which outputs a reply fills: those the request calls for, of those the client wants to see."""
    called_for = {
        "output_ids": True,
        "sequence_length": True,
        # A client of the token door gets text only by naming it among a few outputs.
        "text_output": is_text or "output_ids" not in requested,
        "cum_log_probs": inputs.flag("return_log_probs"),
        "output_log_probs": inputs.flag("return_log_probs"),
        "top_log_probs": "num_log_probs" in inputs,
        "prompt_log_probs": "num_prompt_log_probs" in inputs,
        "context_logits": request.sampling.return_context_logits,
        "generation_logits": request.sampling.return_generation_logits,
        "embedding": request.sampling.return_embedding,
        "batch_index": num_rows > 1,
        "sequence_index": request.sampling.n > 1 and request.beams is None,
        "num_input_tokens": inputs.flag("return_num_input_tokens"),
        "num_output_tokens": inputs.flag("return_num_output_tokens"),
        "finish_reason": inputs.flag("return_finish_reason"),
        "stop_reason": inputs.flag("return_stop_reason"),
        "usage": inputs.flag("return_usage"),
        "token_bytes": inputs.flag("return_token_bytes"),
        **dict.fromkeys(PERF_METRICS, inputs.flag("return_perf_metrics")),
    }
    return requested & {name for name, is_called_for in called_for.items() if is_called_for}


def _chat(inputs: Inputs) -> Chat | None:
    messages = inputs.text("messages")
    return None if messages is None else Chat.parse(messages)


def _listed_bias(inputs: Inputs) -> dict[int, float]:
    token_ids, values = inputs.integers("logit_bias_ids") or (), inputs.numbers("logit_bias_values")
    num_values = 0 if values is None else values.size
    if len(token_ids) != num_values:
        raise InvalidRequest("logit_bias_values", num_values, f"needs one value an id: {len(token_ids)}")
    return {} if values is None else dict(zip(token_ids, values.tolist(), strict=True))


def _bias_words(inputs: Inputs) -> tuple[tuple[str, float], ...]:
    words = inputs.texts("embedding_bias_words")
    weights = inputs.numbers("embedding_bias_weights")
    num_weights = 0 if weights is None else weights.size
    if len(words) != num_weights:
        raise InvalidRequest("embedding_bias_weights", num_weights, f"needs one weight a word: {len(words)}")
    return () if weights is None else tuple(zip(words, weights.tolist(), strict=True))


def _nonempty(words: tuple[str, ...]) -> tuple[str, ...]:
    """Clients pad lists with empty strings."""
    return tuple(word for word in words if word)


def _default(value: Value | None, default: Value) -> Value:
    return default if value is None else value
