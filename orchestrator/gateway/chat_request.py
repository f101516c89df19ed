"""POST /v1/chat/completions, read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from trierarch.orchestrator.gateway.beams import BEAMS, write_beams
from trierarch.orchestrator.gateway.fields import Fields
from trierarch.orchestrator.gateway.generation import (
    MAX_TOKENS,
    Generation,
    common_tensors,
    read_model,
    read_streaming,
)
from trierarch.orchestrator.gateway.guide import write_response_format
from trierarch.orchestrator.gateway.messages import chat_json
from trierarch.orchestrator.gateway.sampling import IGNORED, MAX_LOGPROBS, SAMPLING, read_n, write_sampling
from trierarch.orchestrator.gateway.tensors import Tensors
from trierarch.orchestrator.gateway.tools import Calling, Tools, read_tools

CHAT: Final = frozenset({"messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"})
"""Fields that make the prompt."""
_KNOWN: Final = (
    SAMPLING
    | BEAMS
    | IGNORED
    | CHAT
    | {
        "model",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "logprobs",
        "top_logprobs",
        "response_format",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
    }
)
_REMEDIES: Final = {
    "functions": "is deprecated; send tools",
    "function_call": "is deprecated; send tool_choice",
    "audio": "this model makes text alone; leave it out",
    "web_search_options": "this server searches nothing; leave it out",
    "moderation": "this server judges nothing; leave it out",
    "reasoning_effort": "is not known to this model; see chat_template_kwargs",
    "chat_template": "the template is the model's own; leave it out",
    "echo": "a chat has no prompt to echo; leave it out",
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat."""

    generation: Generation
    tools: Tools


def read_chat(body: dict[str, Any]) -> ChatRequest:
    """The request in a body.

    Raises:
        ApiError: a field is missing, unknown, of another type, out of range, or cannot be honoured.
    """
    fields = Fields(body)
    _refuse_modalities(fields)
    fields.refuse_others(_KNOWN | {"modalities"}, _REMEDIES)
    model = read_model(fields)
    is_streaming, include_usage = read_streaming(fields)
    tools = read_tools(fields)
    tensors = common_tensors(is_streaming)
    tensors.texts("messages", chat_json(fields, tools))
    _write_max_tokens(fields, tensors)
    write_response_format(fields, tensors)
    if "response_format" in fields and tools.calling in (Calling.ALWAYS, Calling.ONE):
        fields.fail("response_format", "contradicts tool_choice, which makes the answer a call; leave one of them out")
    tools.write(tensors)
    write_sampling(fields, tensors)
    has_logprobs = _write_logprobs(fields, tensors)
    n = read_n(fields)
    generation = Generation(
        model=model,
        prompts=(tensors,),
        n=n,
        has_beams=write_beams(fields, tensors, n),
        is_streaming=is_streaming,
        include_usage=include_usage,
        has_logprobs=has_logprobs,
    )
    return ChatRequest(generation, tools)


def _refuse_modalities(fields: Fields) -> None:
    if "modalities" in fields and fields.raw("modalities") != ["text"]:
        fields.fail("modalities", 'this model makes text alone; send ["text"], or leave it out')


def _write_max_tokens(fields: Fields, tensors: Tensors) -> None:
    """Without a bound of the client's the answer may fill what the prompt leaves."""
    old, new = fields.integer("max_tokens", 1), fields.integer("max_completion_tokens", 1)
    if old is not None and new is not None and old != new:
        fields.fail("max_tokens", f"contradicts max_completion_tokens, which is {new}; send one of them")
    most = old if new is None else new
    tensors.integer("max_tokens", MAX_TOKENS if most is None else most)
    if most is None:
        tensors.flag("fit_max_tokens")


def _write_logprobs(fields: Fields, tensors: Tensors) -> bool:
    is_wanted, num_top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, MAX_LOGPROBS)
    if num_top is not None and not is_wanted:
        fields.fail("top_logprobs", "needs logprobs: true")
    if is_wanted:
        tensors.integer("num_log_probs", num_top or 0)
        tensors.flag("return_token_bytes")
    return is_wanted
