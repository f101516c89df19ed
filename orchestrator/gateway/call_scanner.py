"""Scanners: one call of a function, as JSON that comes character by character: its name, and its arguments as written."""

from __future__ import annotations

import json
from typing import Final

_ARGUMENTS: Final = frozenset({"arguments", "parameters"})


class JsonDepth:
    """How deep within objects and lists a text of JSON is."""

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = False
        self._is_escaped = False

    def push(self, character: str) -> None:
        """Read one more character."""
        if self.in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self.in_string = False
        elif character == '"':
            self.in_string = True
        elif character in "{[":
            self.depth += 1
        elif character in "}]":
            self.depth -= 1


class ArgumentsScanner:
    """Reads the arguments of a function whose name is known: one object."""

    def __init__(self, name: str) -> None:
        self.name: str | None = name
        self.arguments = ""
        self.is_complete = False
        self._json = JsonDepth()

    def push(self, character: str) -> None:
        """Read one more character, the object's first brace included."""
        self._json.push(character)
        self.arguments += character
        self.is_complete = self._json.depth == 0


class CallScanner:
    """Reads an object {"name": ..., "arguments": {...}} with its keys in either order; llama says parameters."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments = ""
        """What is written under that key, so that deltas joined are what the model wrote."""
        self.is_complete = False
        self._json = JsonDepth()
        self._key: str | None = None  # of the value that is being read
        self._part = ""  # what is read of a key, or of a value that is no arguments

    def push(self, character: str) -> None:
        """Read one more character, the object's first brace included."""
        was_outside = self._json.depth == 0
        self._json.push(character)
        is_outer = self._json.depth == 1 and not self._json.in_string
        self.is_complete = self._json.depth == 0
        if was_outside:
            return
        if self.is_complete or (is_outer and character == ","):
            self._end_value()
        elif self._key is None and is_outer and character == ":":
            self._key, self._part = _string(self._part) or "", ""
        elif self._key in _ARGUMENTS:
            self.arguments = (self.arguments + character).lstrip()
        else:
            self._part += character

    def _end_value(self) -> None:
        if self._key == "name" and self.name is None:
            self.name = _string(self._part)
        self._key, self._part = None, ""


def _string(written: str) -> str | None:
    """The string that JSON has; None where it is none."""
    try:
        value = json.loads(written)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
