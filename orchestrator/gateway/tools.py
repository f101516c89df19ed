"""Tools: the functions that a chat request offers, and how far the model must call them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from trierarch.orchestrator.gateway.errors import invalid
from trierarch.orchestrator.gateway.fields import Fields
from trierarch.orchestrator.gateway.guide import arguments_schema, calls_schema, write_guide
from trierarch.orchestrator.gateway.tensors import Tensors

MAX_TOOLS: Final = 128
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Calling(Enum):
    """What the model's text may be."""

    NEVER = "never"
    """Text."""
    MAYBE = "maybe"
    """Text, or calls in the model's own format."""
    ALWAYS = "always"
    """A JSON list of calls."""
    ONE = "one"
    """The arguments of one function, in JSON."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What is offered."""

    offered: tuple[dict[str, Any], ...] = ()
    """As the client sent them, and as chat templates show them."""
    calling: Calling = Calling.NEVER
    named: str = ""
    """Of ONE: the function."""
    are_many: bool = True
    """Whether one answer may have several calls."""

    @property
    def functions(self) -> tuple[dict[str, Any], ...]:
        """Their functions."""
        return tuple(tool["function"] for tool in self.offered)

    @property
    def names(self) -> frozenset[str]:
        """Of the functions."""
        return frozenset(function["name"] for function in self.functions)

    def write(self, tensors: Tensors) -> None:
        """Hold the answer to what must be called."""
        if self.calling is Calling.ALWAYS:
            write_guide(tensors, "json_schema", json.dumps(calls_schema(self.functions, self.are_many)))
        elif self.calling is Calling.ONE:
            (function,) = (function for function in self.functions if function["name"] == self.named)
            write_guide(tensors, "json_schema", json.dumps(arguments_schema(function)))
        elif self.calling is Calling.MAYBE:
            # What tells a call from text may be a special token.
            tensors.flag("skip_special_tokens", False)


def read_tools(fields: Fields) -> Tools:
    """What `tools`, `tool_choice` and `parallel_tool_calls` say.

    Raises:
        ApiError: a tool is malformed, or the choice is none of them.
    """
    tools = fields.objects("tools", MAX_TOOLS)
    for tool in tools:
        _check_tool(tool)
    offered = tuple(dict(raw) for raw in fields.raw("tools") or ())
    are_many = fields.flag("parallel_tool_calls") or "parallel_tool_calls" not in fields
    names = [tool["function"]["name"] for tool in offered]
    if len(set(names)) < len(names):
        raise invalid("tools", names, "two functions have one name; rename one")
    choice = fields.raw("tool_choice")
    if choice is None:
        return Tools(offered, Calling.MAYBE if offered else Calling.NEVER, are_many=are_many)
    if choice == "none":
        return Tools(are_many=are_many)
    if not offered:
        fields.fail("tool_choice", "there are no tools to choose from; send some, or leave it out")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        choice, allowed = _allowed(fields, names)
        offered = tuple(tool for tool in offered if tool["function"]["name"] in allowed)
    if choice == "auto":
        return Tools(offered, Calling.MAYBE, are_many=are_many)
    if choice == "required":
        return Tools(offered, Calling.ALWAYS, are_many=are_many)
    return Tools(offered, Calling.ONE, _named(fields, names))


def _allowed(fields: Fields, names: list[str]) -> tuple[str, frozenset[str]]:
    """A choice among some of the tools: auto or required, and their names."""
    choice = fields.object("tool_choice")
    assert choice is not None
    allowed = choice.object("allowed_tools")
    mode = None if allowed is None else allowed.text("mode")
    if allowed is None or mode is None or mode not in ("auto", "required"):
        choice.fail("allowed_tools", 'must be {"mode": "auto" or "required", "tools": [...]}')
    chosen = set()
    for tool in allowed.objects("tools", MAX_TOOLS):
        function = tool.object("function")
        name = None if function is None else function.text("name")
        if name is None or name not in names:
            tool.fail("function", "must have the name of one of the tools")
        chosen.add(name)
    if not chosen:
        allowed.fail("tools", "names no tool; name one, or send tool_choice: none")
    return mode, frozenset(chosen)


def _named(fields: Fields, names: list[str]) -> str:
    remedy = (
        'must be "none", "auto", "required", {"type": "function", "function": {"name": one of the tools}}, or '
        '{"type": "allowed_tools", ...}'
    )
    choice = fields.raw("tool_choice")
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in names:
        fields.fail("tool_choice", remedy)
    return name


def _check_tool(tool: Fields) -> None:
    if tool.text("type") != "function":
        tool.fail("type", "only tools of type function are served")
    tool.refuse_others({"type", "function"})
    function = tool.object("function")
    if function is None:
        tool.fail("function", "a tool needs a function")
    function.refuse_others({"name", "description", "parameters", "strict"})
    name = function.text("name")
    if name is None or _NAME.fullmatch(name) is None:
        function.fail("name", "must be 1 to 64 letters, digits, dots, dashes and underscores")
    function.text("description")
    function.flag("strict")
    function.object("parameters")
