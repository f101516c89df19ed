"""POST /v1/completions, read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from trierarch.orchestrator.gateway.beams import BEAMS, write_beams
from trierarch.orchestrator.gateway.errors import invalid
from trierarch.orchestrator.gateway.fields import Fields, is_utf8
from trierarch.orchestrator.gateway.generation import Generation, common_tensors, read_model, read_streaming
from trierarch.orchestrator.gateway.guide import write_response_format
from trierarch.orchestrator.gateway.sampling import (
    IGNORED,
    MAX_LOGPROBS,
    SAMPLING,
    read_n,
    read_token_ids,
    write_sampling,
)
from trierarch.orchestrator.gateway.tensors import Tensors

DEFAULT_MAX_TOKENS: Final = 16
MAX_PROMPTS: Final = 64
MAX_PROMPT_TOKENS: Final = 1 << 20
_KNOWN: Final = (
    SAMPLING
    | BEAMS
    | IGNORED
    | {
        "model",
        "prompt",
        "stream",
        "stream_options",
        "max_tokens",
        "logprobs",
        "echo",
        "response_format",
        "add_special_tokens",
    }
)
_REMEDIES: Final = {
    "suffix": "this model writes on, it fills no gap; leave it out",
    "messages": "belongs to /v1/chat/completions; send a prompt",
}

Prompt = str | list[int]


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Prompts to be gone on with."""

    generation: Generation
    prompts: tuple[Prompt, ...]
    echo: bool
    """Whether the prompt stands before each answer."""


def read_completion(body: dict[str, Any]) -> CompletionRequest:
    """The request in a body.

    Raises:
        ApiError: a field is missing, unknown, of another type, out of range, or cannot be honoured.
    """
    fields = Fields(body)
    fields.refuse_others(_KNOWN, _REMEDIES)
    n = read_n(fields)
    is_streaming, include_usage = read_streaming(fields)
    prompts = read_prompts(fields)
    echo = fields.flag("echo")
    common = common_tensors(is_streaming)
    common.integer("max_tokens", fields.integer("max_tokens", 1) or DEFAULT_MAX_TOKENS)
    write_response_format(fields, common)
    write_sampling(fields, common)
    has_beams = write_beams(fields, common, n)
    num_logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)
    if num_logprobs is not None:
        common.integer("num_log_probs", num_logprobs)
        common.flag("return_token_bytes")
        if echo:
            common.integer("num_prompt_log_probs", num_logprobs)
    if "add_special_tokens" in fields:
        common.flag("add_special_tokens", fields.flag("add_special_tokens"))
    generation = Generation(
        model=read_model(fields),
        prompts=tuple(with_prompt(common, prompt) for prompt in prompts),
        n=n,
        has_beams=has_beams,
        is_streaming=is_streaming,
        include_usage=include_usage,
        has_logprobs=num_logprobs is not None,
        has_prompt_logprobs=num_logprobs is not None and echo,
    )
    return CompletionRequest(generation, prompts, echo)


def with_prompt(common: Tensors, prompt: Prompt) -> Tensors:
    """`common`, and a prompt."""
    tensors = common.copy()
    if isinstance(prompt, str):
        tensors.texts("text_input", prompt)
    else:
        tensors.integers("input_ids", prompt)
    return tensors


def read_prompts(fields: Fields, field: str = "prompt", most: int = MAX_PROMPTS) -> tuple[Prompt, ...]:
    """A string, token ids, or a list of either; `most`: how many there may be."""
    value = fields.raw(field)
    name = fields.named(field)
    if value is None or value == []:
        fields.fail(field, "send a string, a list of strings, token ids or a list of those")
    if isinstance(value, str) or (isinstance(value, list) and isinstance(value[0], int)):
        value = [value]
    if not isinstance(value, list):
        fields.fail(field, "must be a string, a list of strings, token ids or a list of those")
    if len(value) > most:
        raise invalid(name, len(value), f"takes at most {most} texts")
    return tuple(_prompt(item, name) for item in value)


def _prompt(item: object, name: str) -> Prompt:
    if not isinstance(item, str):
        return read_token_ids(item, name, MAX_PROMPT_TOKENS)
    if not item:
        raise invalid(name, item, "is empty; send at least one character")
    if not is_utf8(item):
        raise invalid(name, item, "has half a surrogate pair; send valid Unicode")
    return item
