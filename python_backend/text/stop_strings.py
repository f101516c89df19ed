"""StopStrings: ends a stream of text where one of several strings is complete, and never shows a part of it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from trierarch.python_backend.errors import InvalidRequest

MAX_STOP_STRINGS: Final = 64
MAX_STOP_LENGTH: Final = 1024
"""Characters of one stop string."""


class StopStrings:
    """Matches a stream against all stop strings at once (Knuth, Morris, Pratt 1977), O(1) a character and string.

    The first string to be complete ends the text; of several complete at the same character, the longest. However the
    stream is cut into pieces, the outcome is the same.
    """

    def __init__(self, stop: Iterable[str]) -> None:
        """Raise InvalidRequest for an empty or over-long string, or too many of them."""
        strings = tuple(dict.fromkeys(stop))
        if len(strings) > MAX_STOP_STRINGS:
            raise InvalidRequest("stop", len(strings), f"at most {MAX_STOP_STRINGS} stop strings are taken")
        for string in strings:
            if not 1 <= len(string) <= MAX_STOP_LENGTH:
                raise InvalidRequest("stop", string, f"a stop string has 1 to {MAX_STOP_LENGTH} characters")
        # The longest first, so that it wins where several are complete.
        self._patterns = [_Pattern(string) for string in sorted(strings, key=len, reverse=True)]
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that is safe to show, and the stop string that is now complete, if one is.

        What follows a complete stop string in `text` is dropped. Nothing may be pushed after it.
        """
        if not self._patterns:
            return text, None
        start, self._held = len(self._held), self._held + text
        for end, character in enumerate(text, start + 1):
            complete = [pattern.string for pattern in self._patterns if pattern.advance(character)]
            if complete:
                safe, self._held = self._held[: end - len(complete[0])], ""
                return safe, complete[0]
        cut = len(self._held) - max(pattern.num_matched for pattern in self._patterns)
        safe, self._held = self._held[:cut], self._held[cut:]
        return safe, None

    def flush(self) -> str:
        """The text held back, since the stream ended and no stop string came of it."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """One stop string and how much of it the stream ends with."""

    def __init__(self, string: str) -> None:
        self.string = string
        self.num_matched = 0
        self._borders = _borders(string)

    def advance(self, character: str) -> bool:
        """Take one character more; whether the string is complete."""
        matched = self.num_matched
        while matched and self.string[matched] != character:
            matched = self._borders[matched - 1]
        self.num_matched = matched + (self.string[matched] == character)
        return self.num_matched == len(self.string)


@lru_cache(maxsize=256)
def _borders(string: str) -> tuple[int, ...]:
    """For each prefix, the length of the longest shorter prefix that it ends with."""
    borders = [0] * len(string)
    matched = 0
    for place in range(1, len(string)):
        while matched and string[matched] != string[place]:
            matched = borders[matched - 1]
        matched += string[matched] == string[place]
        borders[place] = matched
    return tuple(borders)
