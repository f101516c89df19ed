"""PythonCallScanner: one call of a function in Python's words, f(a=1, b="x"), that comes character by character.

Nothing of it is run: it is parsed, and only literals by name become arguments. So nothing is known of it before its end.
"""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any, Final

_NAMED: Final[dict[str, Any]] = {"true": True, "false": False, "null": None}
"""Models that have read more JSON than Python write these."""


class PythonCallScanner:
    """Reads what stands behind the function's name: from one parenthesis to the other."""

    def __init__(self, function: str) -> None:
        self.name: str | None = None
        """The function, once the call is complete; None then is one that is none."""
        self.arguments = ""
        """As JSON, with the name."""
        self.is_complete = False
        self._function = function
        self._written = ""
        self._depth = 0
        self._quote = ""  # of the string that it is in
        self._is_escaped = False

    def push(self, character: str) -> None:
        """Read one more character, the first parenthesis included."""
        self._written += character
        if self._quote:
            self._push_quoted(character)
        elif character in "\"'":
            self._quote = character
        elif character in "([{":
            self._depth += 1
        elif character in ")]}":
            self._depth -= 1
            if not self._depth:
                self._end()

    def _push_quoted(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == self._quote:
            self._quote = ""

    def _end(self) -> None:
        self.is_complete = True
        try:
            self.arguments = json.dumps(keyword_arguments(self._written), ensure_ascii=False, allow_nan=False)
        except ValueError:
            return
        self.name = self._function


def keyword_arguments(written: str) -> dict[str, Any]:
    """The arguments in a text such as (a=1, b=["x"]).

    Raises:
        ValueError: it has anything but literals of JSON's types, by name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that strings do not know
            call = ast.parse("f" + written, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("no call by names")
        arguments = {keyword.arg: _literal(keyword.value) for keyword in call.keywords if keyword.arg is not None}
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from error
    if len(arguments) < len(call.keywords):
        raise ValueError("an argument without a name of its own")
    return arguments


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | bool() | int() | float() | None as value):
            return value
        case ast.Name(id=name) if name in _NAMED:
            return _NAMED[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return dict(zip(map(_key, keys), map(_literal, values), strict=True))
    raise ValueError("no literal")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("a key that is no string")
