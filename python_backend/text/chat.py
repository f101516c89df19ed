"""Chat: messages for the engine's chat template, as a client sends them in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from trierarch.python_backend.errors import InvalidRequest

MAX_MESSAGES: Final = 4096
MAX_VARIABLES: Final = 32
_OWN: Final = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})
"""Variables of the template that have fields of their own."""
_ENVIRONMENTS: Final = frozenset({"raise_exception", "strftime_now", "bos_token", "eos_token", "pad_token"})
"""Names that the engine gives a meaning to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation so far. Checked as far as that needs no template."""

    messages: tuple[Mapping[str, Any], ...]
    """Each has at least a `role`; what else it has is between client and template."""
    tools: tuple[Mapping[str, Any], ...] | None = None
    """JSON schemas of functions, for templates that show them."""
    add_generation_prompt: bool = True
    """Whether the prompt ends where the assistant's words begin."""
    continue_final_message: bool = False
    """Whether the prompt ends with the words of the last message, which the output goes on with."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Others that a template knows, such as enable_thinking."""

    def __post_init__(self) -> None:
        """Raise InvalidRequest for what no template could take."""
        if not 1 <= len(self.messages) <= MAX_MESSAGES:
            raise InvalidRequest("messages", len(self.messages), f"takes between 1 and {MAX_MESSAGES} messages")
        for index, message in enumerate(self.messages):
            if not (isinstance(message, Mapping) and isinstance(message.get("role"), str)):
                raise InvalidRequest(f"messages[{index}]", message, "must be an object with a role")
        for index, tool in enumerate(self.tools or ()):
            if not isinstance(tool, Mapping):
                raise InvalidRequest(f"tools[{index}]", tool, "must be an object")
        taken = self.variables.keys() & (_OWN | _ENVIRONMENTS)
        if taken or len(self.variables) > MAX_VARIABLES:
            remedy = f"takes at most {MAX_VARIABLES} variables, none of them {', '.join(sorted(_OWN | _ENVIRONMENTS))}"
            raise InvalidRequest("chat_template_kwargs", sorted(self.variables), remedy)
        if self.continue_final_message:
            if self.add_generation_prompt:
                raise InvalidRequest(
                    "continue_final_message", True, "contradicts add_generation_prompt, which is true; send one of them"
                )
            if not isinstance(self.messages[-1].get("content"), str):
                raise InvalidRequest("continue_final_message", True, "needs a last message whose content is a string")

    @classmethod
    def parse(cls, text: str) -> Chat:
        """Read a JSON object of these fields, `variables` under the name chat_template_kwargs.

        Raises:
            InvalidRequest: it is none, or a field is unknown or of another type.
        """
        try:
            sent = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest("messages", text, f"must be JSON ({error})") from None
        if not isinstance(sent, dict):
            raise InvalidRequest("messages", text, 'must be a JSON object with a list "messages"')
        unknown = sent.keys() - _OWN - {"chat_template_kwargs"}
        if unknown:
            raise InvalidRequest("messages", sorted(unknown), f"takes {', '.join(sorted(_OWN))}, chat_template_kwargs")
        tools = _typed(sent, "tools", list, None)
        return cls(
            messages=tuple(_typed(sent, "messages", list, [])),
            tools=tuple(tools) if tools else None,
            add_generation_prompt=_typed(sent, "add_generation_prompt", bool, True),
            continue_final_message=_typed(sent, "continue_final_message", bool, False),
            variables=_typed(sent, "chat_template_kwargs", dict, {}),
        )


def _typed(sent: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = sent.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise InvalidRequest(name, value, f"must be a JSON {kind.__name__}")
    return value
