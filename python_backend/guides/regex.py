"""What of a regular expression is not what it seems: xgrammar drops anchors that do not stand at its ends."""

from __future__ import annotations


def misplaced_anchor(pattern: str) -> int | None:
    """Where the first `^` stands that is not the first character, or `$` that is not the last; None if there is none.

    Those that are escaped, or amid brackets, are characters and no anchors.
    """
    is_in_brackets = is_escaped = False
    for place, character in enumerate(pattern):
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        elif is_in_brackets:
            is_in_brackets = character != "]"
        elif character == "[":
            is_in_brackets = True
        elif (character == "^" and place > 0) or (character == "$" and place < len(pattern) - 1):
            return place
    return None
