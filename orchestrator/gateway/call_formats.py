"""CallFormats: how models write the calls that they make, as one table.

| format | written |
| --- | --- |
| Hermes' and Qwen's | <tool_call>{"name": ..., "arguments": {...}}</tool_call> |
| Mistral's | [TOOL_CALLS] before a list of such objects, or before name{...} |
| llama 3's | {"name": ..., "parameters": {...}}, bare or behind <|python_tag|> |
| llama 3.2's and 4's | [f(a=1), g(b="x")], bare, behind <|python_tag|>, or from <|python_start|> to <|python_end|> |
| DeepSeek's | a word of its own before and behind all calls, and before and behind each, in which the name stands |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trierarch.orchestrator.gateway.call_scanner import ArgumentsScanner, CallScanner
from trierarch.orchestrator.gateway.python_call import PythonCallScanner

Scanner = CallScanner | ArgumentsScanner | PythonCallScanner


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What stands before the arguments of a call, the function's name in it."""

    pattern: re.Pattern[str]
    """Up to the bracket that opens the arguments, that included. Some group is the name."""
    begun: re.Pattern[str]
    """All of a text that may yet become one."""
    scanner: Callable[[str], Scanner]
    """Reads the arguments, bracket included; takes the name."""
    is_any_name: bool = False
    """Whether it is a call although no function of that name is offered."""

    def name(self, match: re.Match[str]) -> str:
        """The function's."""
        return next(group for group in match.groups() if group is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """One way."""

    marker: str
    """What calls begin with; nothing is that they begin the text."""
    end: str = ""
    """Behind the last one; nothing where nothing is."""
    between: tuple[str, ...] = ()
    """Words that may stand behind each, beside space and brackets of lists."""
    header: Header | None = None
    """Of calls that are no objects with a name."""


_FUNCTION: Final = r"[\w.-]{1,64}"
_NAMED_OBJECT: Final = Header(
    pattern=re.compile(rf"({_FUNCTION})(?:\[ARGS\])?\{{"),
    begun=re.compile(rf"{_FUNCTION}(\[(A(R(G(S\]?)?)?)?)?)?"),
    scanner=ArgumentsScanner,
)
_PYTHON: Final = Header(pattern=re.compile(rf"({_FUNCTION})\("), begun=re.compile(_FUNCTION), scanner=PythonCallScanner)
_CALL: Final = "<｜tool▁call▁begin｜>"
_SEPARATOR: Final = "<｜tool▁sep｜>"
_DEEPSEEK: Final = Header(
    # V3 and R1 have the kind before the name, and the arguments in a block of Markdown; V3.1 has neither.
    pattern=re.compile(rf"{_CALL}(?:function{_SEPARATOR}({_FUNCTION})\s*```json\s*|({_FUNCTION}){_SEPARATOR}\s*)\{{"),
    begun=re.compile(
        "|".join(re.escape(_CALL[:length]) for length in range(1, len(_CALL))) + rf"|{_CALL}[^{{]{{0,160}}"
    ),
    scanner=ArgumentsScanner,
    is_any_name=True,
)

BARE: Final = CallFormat(marker="", header=_PYTHON)
_MARKED: Final = (
    CallFormat(marker="<tool_call>", end="</tool_call>"),
    CallFormat(marker="[TOOL_CALLS]", header=_NAMED_OBJECT),
    CallFormat(marker="<|python_tag|>", header=_PYTHON),
    CallFormat(marker="<|python_start|>", end="<|python_end|>", header=_PYTHON),
    CallFormat(
        marker="<｜tool▁calls▁begin｜>",
        end="<｜tool▁calls▁end｜>",
        between=("```", "<｜tool▁call▁end｜>"),
        header=_DEEPSEEK,
    ),
)
FORMATS: Final = {one.marker: one for one in _MARKED}
"""Those that begin anywhere, by their markers."""
MARKERS: Final = tuple(FORMATS)
