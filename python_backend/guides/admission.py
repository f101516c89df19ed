"""What a guide must satisfy before anything is compiled: checks that take no time to speak of."""

from __future__ import annotations

from typing import Final

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.guides.json_schema import Unsupported, check_schema
from trierarch.python_backend.guides.regex import misplaced_anchor
from trierarch.python_backend.request import Guide, GuideKind

MOST_BYTES: Final = 1 << 16
"""Of a guide's text."""


def check_guide(guide: Guide) -> None:
    """Raise InvalidRequest for a text that is too long or no UTF-8, or says what would not be honoured."""
    try:
        num_bytes = len(guide.text.encode())
    except UnicodeError as error:
        raise InvalidRequest("guide", guide.text, f"is not valid Unicode ({error})") from None
    if num_bytes > MOST_BYTES:
        raise InvalidRequest("guide", guide.text, f"has {num_bytes} bytes, at most {MOST_BYTES} are taken")
    if guide.kind is GuideKind.JSON_SCHEMA:
        try:
            check_schema(guide.text)
        except Unsupported as error:
            raise InvalidRequest("guide", guide.text, f"this JSON schema is not served: {error}") from None
    if guide.kind is GuideKind.REGEX and (place := misplaced_anchor(guide.text)) is not None:
        raise InvalidRequest(
            "guide", guide.text, f"has an anchor at {place}; the whole output is matched, so leave it out"
        )
