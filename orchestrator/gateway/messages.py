"""A chat request's messages, checked, and as the model's chat template takes them."""

from __future__ import annotations

import json
from typing import Any, Final

from trierarch.orchestrator.gateway.errors import ApiError, invalid
from trierarch.orchestrator.gateway.fields import Fields
from trierarch.orchestrator.gateway.tools import Tools

MAX_MESSAGES: Final = 4096
"""Of one chat; the backend's."""
MAX_PARTS: Final = 1024
_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""OpenAI's role -> the template's."""
_COMMON: Final = {"role", "content", "name"}
_KNOWN: Final = {
    "system": _COMMON,
    "developer": _COMMON,
    "user": _COMMON,
    "assistant": _COMMON | {"tool_calls", "reasoning_content", "refusal", "annotations"},
    "tool": _COMMON | {"tool_call_id"},
}
_TEXT_PARTS: Final = {"text": "text", "input_text": "text", "refusal": "refusal"}
"""Type of a content part -> the field with its text."""


def chat_json(fields: Fields, tools: Tools) -> str:
    """The model's `messages` tensor.

    Raises:
        ApiError: a message is malformed, or holds what is no text.
    """
    messages = [_message(message) for message in fields.objects("messages", MAX_MESSAGES)]
    if not messages:
        fields.fail("messages", "needs at least one message")
    chat: dict[str, Any] = {"messages": messages}
    if tools.offered:
        chat["tools"] = tools.offered
    for name in ("add_generation_prompt", "continue_final_message"):
        if name in fields:
            chat[name] = fields.flag(name)
    variables = fields.object("chat_template_kwargs")
    if variables is not None:
        chat["chat_template_kwargs"] = fields.raw("chat_template_kwargs")
    try:
        text = json.dumps(chat)
    except RecursionError:
        raise ApiError(400, "messages or tools are nested too deeply", param="messages") from None
    return text


def _message(message: Fields) -> dict[str, Any]:
    role = message.text("role")
    if role not in _ROLES:
        message.fail("role", f"must be one of {', '.join(_ROLES)}")
    message.refuse_others(_KNOWN[role])
    content = _content(message)
    made: dict[str, Any] = {"role": _ROLES[role], "content": content}
    for name in ("name", "tool_call_id", "reasoning_content"):
        text = message.text(name)
        if text is not None:
            made[name] = text
    calls = [_call(call) for call in message.objects("tool_calls", MAX_PARTS)]
    if calls:
        made["tool_calls"] = calls
    elif content is None:
        message.fail("content", "a message needs content")
    else:
        return made
    # Templates differ in what they make of no content; an empty string is nothing to all of them.
    return made | {"content": content or ""}


def _content(message: Fields) -> str | None:
    value = message.raw("content")
    if value is None or isinstance(value, str):
        return message.text("content")
    if not isinstance(value, list):
        message.fail("content", "must be a string or a list of text parts")
    texts = []
    for part in message.objects("content", MAX_PARTS):
        kind = part.text("type")
        if kind not in _TEXT_PARTS:
            part.fail("type", "this model reads text alone; send parts of type text")
        text = part.text(_TEXT_PARTS[kind])
        if text is None:
            part.fail(_TEXT_PARTS[kind], "a text part needs its text")
        texts.append(text)
    return "\n".join(texts)


def _call(call: Fields) -> dict[str, Any]:
    """OpenAI has arguments as JSON in a string; templates want the object."""
    if call.text("type") not in (None, "function"):
        call.fail("type", "only calls of functions are known")
    function = call.object("function")
    name = None if function is None else function.text("name")
    if function is None or not name:
        call.fail("function", "a call needs the name of its function")
    written = function.text("arguments") or "{}"
    try:
        arguments = json.loads(written)
    except (ValueError, RecursionError):
        raise invalid(function.named("arguments"), written, "must be JSON") from None
    if not isinstance(arguments, dict):
        raise invalid(function.named("arguments"), written, "must be a JSON object")
    made: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    call_id = call.text("id")
    return made if call_id is None else made | {"id": call_id}
