"""ToolCallParser: a model's text, as it comes, told apart into what it says and the functions that it calls.

Formats: Hermes' and Qwen's <tool_call>{"name": ..., "arguments": {...}}</tool_call>; Mistral's [TOOL_CALLS] before a list
of calls, or before name{...}; llama 3's bare {"name": ..., "parameters": {...}}, a call only where it begins the text and
names a function that is offered. Whatever fits none of them is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from trierarch.orchestrator.gateway.call_scanner import ArgumentsScanner, CallScanner

_HERMES: Final = "<tool_call>"
_HERMES_END: Final = "</tool_call>"
_MISTRAL: Final = "[TOOL_CALLS]"
_MARKERS: Final = (_HERMES, _MISTRAL, "<|python_tag|>")
_BARE: Final = ""
"""In the place of a marker, where the text begins with a brace."""
_SPACE: Final = " \t\r\n,;"
_BETWEEN: Final = _SPACE + "[]"
"""May stand between calls."""
_NAME: Final = re.compile(r"([\w.-]{1,64})(?:\[ARGS\])?\{")
_NAME_TO_BE: Final = re.compile(r"[\w.-]{1,64}(\[(A(R(G(S\]?)?)?)?)?)?")


@dataclass(frozen=True, slots=True)
class Text:
    """What the model says."""

    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """Part of a call: first its name, then its arguments as JSON, piece by piece."""

    index: int
    name: str | None = None
    arguments: str = ""


Delta = Text | CallDelta


class ToolCallParser:
    """One answer's text in, deltas out. What may yet become a marker or a call is held back."""

    def __init__(self, names: frozenset[str], are_many: bool = True, is_list: bool = False) -> None:
        """names: of the functions that are offered; is_list: whether the text is a JSON list of calls and nothing else."""
        self.num_calls = 0
        self._names = names
        self._are_many = are_many
        self._rest = ""  # what has come and is not read yet
        self._read = ""  # since the marker: said as text where it turns out to be no call
        self._marker = _BARE
        self._opening = ""  # the marker, until a call stands behind it
        self._has_begun = False  # whether anything but space was read as text
        self._scanner: CallScanner | ArgumentsScanner | None = None
        self._num_told = 0  # characters of the scanner's arguments
        self._is_told = False  # whether the scanner's call is
        self._go_on: Callable[[], Iterator[Delta] | None] = self._seek if is_list else self._text

    def push(self, text: str) -> Iterator[Delta]:
        """What is known once `text` is there."""
        self._rest += text
        while self._rest:
            deltas = self._go_on()
            if deltas is None:
                break
            yield from deltas
        yield from self._arguments()

    def finish(self) -> Iterator[Delta]:
        """What is left when the answer is over: text that was held back; a call that was cut stays cut."""
        held = self._rest if self._go_on == self._text else self._opening + self._read + self._rest
        if not self._is_told and held.strip(_BETWEEN if self.num_calls else None):
            yield Text(held)

    def _text(self) -> Iterator[Delta] | None:
        """Read text up to a marker. Each of these steps is None where it needs more than there is."""
        start = self._rest.lstrip()
        if not self._has_begun and not start:
            return None
        if not self._has_begun and not self.num_calls and start[0] in "{[":
            if any(marker.startswith(start) for marker in _MARKERS):
                return None
            if not start.startswith(_MARKERS):
                self._marker = _BARE
                return self._seek_from(len(self._rest) - len(start), 0)
        found = [(place, marker) for marker in _MARKERS if (place := self._rest.find(marker)) >= 0]
        if found:
            place, self._marker = min(found)
            return self._seek_from(place, len(self._marker))
        said, self._rest = _without_beginnings(self._rest)
        return self._say(said) if said else None

    def _seek_from(self, place: int, length: int) -> Iterator[Delta]:
        said, self._rest = self._rest[:place], self._rest[place + length :]
        self._read, self._opening = "", self._marker
        self._go_on = self._seek
        return self._say(said) if said.strip() else iter(())

    def _seek(self) -> Iterator[Delta] | None:
        """Read what stands between calls up to the next."""
        start = self._rest.lstrip(_SPACE)
        if start and any(marker.startswith(start) for marker in _MARKERS):
            return None
        self._take(len(self._rest) - len(start))
        if start.startswith(_MARKERS):
            self._marker = next(marker for marker in _MARKERS if start.startswith(marker))
            self._take(len(self._marker))
            return iter(())
        start = start.lstrip(_BETWEEN)
        self._take(len(self._rest) - len(start))
        if not start:
            return iter(())
        if start[0] == "{":
            return self._begin(CallScanner())
        if self._marker == _HERMES and _HERMES_END.startswith(start[: len(_HERMES_END)]):
            if len(start) < len(_HERMES_END):
                return None
            self._rest = start[len(_HERMES_END) :]
            self._go_on = self._text
            return iter(())
        if self._marker == _MISTRAL:
            match = _NAME.match(start)
            if match is not None and match[1] in self._names:
                self._take(match.end() - 1)
                return self._begin(ArgumentsScanner(match[1]))
            if match is None and _NAME_TO_BE.fullmatch(start):
                return None
        return self._be_text()

    def _begin(self, scanner: CallScanner | ArgumentsScanner) -> Iterator[Delta]:
        self._scanner, self._num_told, self._is_told = scanner, 0, False
        self._go_on = self._call
        return iter(())

    def _call(self) -> Iterator[Delta]:
        """Read a call, to its end or as far as it is there."""
        scanner = self._scanner
        assert scanner is not None
        for count, character in enumerate(self._rest, start=1):
            scanner.push(character)
            is_unknown = self._marker == _BARE and scanner.name is not None and scanner.name not in self._names
            if is_unknown or (scanner.is_complete and scanner.name is None):
                return self._be_text()
            if scanner.is_complete:
                self._take(count)
                return self._end_call()
        self._take(len(self._rest))
        return iter(())

    def _end_call(self) -> Iterator[Delta]:
        yield from self._arguments()
        self._read, self._opening, self._scanner, self._is_told = "", "", None, False
        self._go_on = self._seek

    def _arguments(self) -> Iterator[Delta]:
        """What is known of the call that is being read, and not told yet."""
        scanner = self._scanner
        if scanner is None or scanner.name is None:
            return
        if not self._is_told:
            self._is_told = True
            self.num_calls += 1
            if self._is_shown:
                yield CallDelta(self.num_calls - 1, scanner.name)
        written = scanner.arguments.rstrip()  # space behind it may be the object's around it
        if self._is_shown and len(written) > self._num_told:
            yield CallDelta(self.num_calls - 1, None, written[self._num_told :])
            self._num_told = len(written)

    @property
    def _is_shown(self) -> bool:
        return self._are_many or self.num_calls == 1

    def _take(self, count: int) -> None:
        self._read += self._rest[:count]
        self._rest = self._rest[count:]

    def _be_text(self) -> Iterator[Delta]:
        """It was no call after all; there may be one further on."""
        self._rest, self._read = self._read + self._rest, ""
        self._scanner = None
        self._go_on = self._text
        return self._say(self._opening)

    def _say(self, text: str) -> Iterator[Delta]:
        self._has_begun = True
        if text.strip() or (text and not self.num_calls):
            yield Text(text)


def _without_beginnings(text: str) -> tuple[str, str]:
    """`text` without, and of, what may be the beginning of a marker at its end."""
    for length in range(min(len(text), max(map(len, _MARKERS)) - 1), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in _MARKERS):
            return text[:-length], text[-length:]
    return text, ""
