"""ToolCallParser: a model's text, as it comes, told apart into what it says and the functions that it calls.

How calls are written is `call_formats`' to say. What is bare is a call only where it begins the text and names a function
that is offered. Whatever fits no format is text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from trierarch.orchestrator.gateway.call_formats import BARE, FORMATS, MARKERS, Scanner
from trierarch.orchestrator.gateway.call_scanner import CallScanner

_SPACE: Final = " \t\r\n,;"
_BETWEEN: Final = _SPACE + "[]"
"""May stand between calls."""


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
        self._format = BARE
        self._opening = ""  # the marker, until a call stands behind it
        self._has_begun = False  # whether anything but space was read as text, since the last call
        self._scanner: Scanner | None = None
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
            if any(marker.startswith(start) for marker in MARKERS):
                return None
            if not start.startswith(MARKERS):
                self._format = BARE
                return self._seek_from(len(self._rest) - len(start), 0)
        found = [(place, marker) for marker in MARKERS if (place := self._rest.find(marker)) >= 0]
        if found:
            place, marker = min(found)
            self._format = FORMATS[marker]
            return self._seek_from(place, len(marker))
        said, rest = _without_beginnings(self._rest)
        if not said or not (self._has_begun or said.strip()):
            return None
        self._rest = rest
        return self._say(said)

    def _seek_from(self, place: int, length: int) -> Iterator[Delta]:
        said, self._rest = self._rest[:place], self._rest[place + length :]
        self._read, self._opening = "", self._format.marker
        self._go_on = self._seek
        return self._say(said) if said.strip() or (said and self._has_begun) else iter(())

    def _seek(self) -> Iterator[Delta] | None:
        """Read what stands between calls up to the next."""
        start = self._rest.lstrip(_SPACE)
        if start and any(marker.startswith(start) for marker in MARKERS):
            return None
        self._take(len(self._rest) - len(start))
        if start.startswith(MARKERS):
            marker = next(marker for marker in MARKERS if start.startswith(marker))
            self._format = FORMATS[marker]
            self._take(len(marker))
            return iter(())
        start = start.lstrip(_BETWEEN)
        self._take(len(self._rest) - len(start))
        if not start:
            return iter(())
        for word in (*self._format.between, self._format.end):
            if word and start.startswith(word):
                return self._pass(word)
            if word.startswith(start):
                return None
        if start[0] == "{":
            return self._begin(CallScanner())
        return self._seek_header(start)

    def _pass(self, word: str) -> Iterator[Delta]:
        """Leave a word that stands behind a call."""
        if word == self._format.end:
            self._rest = self._rest[len(word) :]
            self._go_on = self._text
        else:
            self._take(len(word))
        return iter(())

    def _seek_header(self, start: str) -> Iterator[Delta] | None:
        header = self._format.header
        if header is not None:
            match = header.pattern.match(start)
            if match is None and header.begun.fullmatch(start):
                return None
            if match is not None and (header.is_any_name or header.name(match) in self._names):
                self._take(match.end() - 1)
                return self._begin(header.scanner(header.name(match)))
        return self._be_text()

    def _begin(self, scanner: Scanner) -> Iterator[Delta]:
        self._scanner, self._num_told, self._is_told = scanner, 0, False
        self._go_on = self._call
        return iter(())

    def _call(self) -> Iterator[Delta]:
        """Read a call, to its end or as far as it is there."""
        scanner = self._scanner
        assert scanner is not None
        for count, character in enumerate(self._rest, start=1):
            scanner.push(character)
            is_unknown = self._format is BARE and scanner.name is not None and scanner.name not in self._names
            if is_unknown or (scanner.is_complete and scanner.name is None):
                return self._be_text()
            if scanner.is_complete:
                self._take(count)
                return self._end_call()
        self._take(len(self._rest))
        return iter(())

    def _end_call(self) -> Iterator[Delta]:
        yield from self._arguments()
        self._read, self._opening, self._scanner, self._is_told, self._has_begun = "", "", None, False, False
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
        if text:
            yield Text(text)


def _without_beginnings(text: str) -> tuple[str, str]:
    """`text` without, and of, what may be the beginning of a marker at its end."""
    for length in range(min(len(text), max(map(len, MARKERS)) - 1), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in MARKERS):
            return text[:-length], text[-length:]
    return text, ""
