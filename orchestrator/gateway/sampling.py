"""OpenAI's parameters of drawing tokens, and vLLM's beside them, as the model's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trierarch.orchestrator.gateway.errors import invalid
from trierarch.orchestrator.gateway.fields import INT32_MAX, Fields, is_utf8
from trierarch.orchestrator.gateway.tensors import Tensors

MAX_STOPS: Final = 16
MAX_BIASES: Final = 1024
MAX_LOGPROBS: Final = 20
MAX_N: Final = 64
MAX_TEMPERATURE: Final = 2.0
MAX_PENALTY: Final = 2.0
UINT64_MAX: Final = 2**64 - 1

SAMPLING: Final = frozenset(
    {
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "stop_token_ids",
        "bad_words",
        "ignore_eos",
        "min_tokens",
        "logit_bias",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "cache_salt",
        "priority",
        "max_draft_tokens",
        "drafters",
        "skip_special_tokens",
    }
)
"""Fields that `write_sampling` reads."""
IGNORED: Final = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "prediction",
        "verbosity",
    }
)
"""Fields that change no answer here: who asks, where OpenAI keeps it, and what it may cost."""


def read_n(fields: Fields) -> int:
    """How many answers are drawn."""
    return fields.integer("n", 1, MAX_N) or 1


def write_sampling(fields: Fields, tensors: Tensors) -> None:
    """Write what `fields` say of drawing.

    Raises:
        ApiError: a field has another type, or lies out of range.
    """
    _write_drawing(fields, tensors)
    for name in ("presence_penalty", "frequency_penalty"):
        tensors.number(name, fields.number(name, -MAX_PENALTY, MAX_PENALTY))
    tensors.number("repetition_penalty", fields.number("repetition_penalty", 1e-3, 1e3))
    tensors.unsigned("seed", fields.integer("seed", -(2**63), UINT64_MAX))
    tensors.integer("min_tokens", fields.integer("min_tokens", 0))
    tensors.integer("priority", fields.integer("priority", -INT32_MAX))
    tensors.integer("max_draft_tokens", fields.integer("max_draft_tokens", 0))
    if read_n(fields) > 1:
        tensors.integer("num_return_sequences", read_n(fields))
    if fields.flag("ignore_eos"):
        tensors.integer("end_id", -1)
    if "skip_special_tokens" in fields:
        tensors.flag("skip_special_tokens", fields.flag("skip_special_tokens"))
    salt = fields.text("cache_salt")
    if salt:
        tensors.texts("cache_salt", salt)
    _write_words(fields, tensors)
    _write_biases(fields, tensors)


def _write_drawing(fields: Fields, tensors: Tensors) -> None:
    """The contract is greedy until it is told otherwise; OpenAI's API is not: temperature 1, all tokens."""
    temperature = fields.number("temperature", 0, MAX_TEMPERATURE)
    top_p = fields.number("top_p", 0, 1)
    top_k = fields.integer("top_k", -1)
    min_p = fields.number("min_p", 0, 1)
    if temperature == 0 or top_p == 0 or fields.flag("use_beam_search"):
        tensors.integer("top_k", 1)
        return
    tensors.number("temperature", 1.0 if temperature is None else temperature)
    tensors.integer("top_k", max(0, top_k or 0))
    tensors.number("top_p", top_p)
    tensors.number("min_p", min_p)


def _write_words(fields: Fields, tensors: Tensors) -> None:
    for name, tensor in (("stop", "stop_words"), ("bad_words", "bad_words"), ("drafters", "drafters")):
        words = fields.texts(name, MAX_STOPS)
        if "" in words:
            fields.fail(name, "has an empty string; leave it out")
        if words:
            tensors.texts(tensor, *words)
    token_ids = fields.raw("stop_token_ids")
    if token_ids is not None:
        ids = read_token_ids(token_ids, fields.named("stop_token_ids"), MAX_STOPS)
        tensors.words("stop_words_list", [(token_id,) for token_id in ids])


def read_token_ids(value: object, name: str, most: int) -> list[int]:
    """A list of token ids; whether the model has them is its own to say."""
    if not isinstance(value, list) or not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        raise invalid(name, value, "must be a list of token ids")
    if not 1 <= len(value) <= most:
        raise invalid(name, len(value), f"takes between 1 and {most} token ids")
    for item in value:
        if not 0 <= item <= INT32_MAX:
            raise invalid(name, item, f"token ids lie between 0 and {INT32_MAX}")
    return value


def _write_biases(fields: Fields, tensors: Tensors) -> None:
    biases = fields.object("logit_bias")
    if biases is None:
        return
    sent = fields.raw("logit_bias")
    assert isinstance(sent, Mapping)
    if len(sent) > MAX_BIASES:
        raise invalid("logit_bias", len(sent), f"takes at most {MAX_BIASES} tokens")
    ids, values = [], []
    for key in sent:
        if not (is_utf8(key) and key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= INT32_MAX):
            raise invalid("logit_bias", key, "its keys must be token ids")
        bias = biases.number(key, -100, 100)
        if bias is not None:
            ids.append(int(key))
            values.append(bias)
    if ids:
        tensors.integers("logit_bias_ids", ids)
        tensors.numbers("logit_bias_values", values)
