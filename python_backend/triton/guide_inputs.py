"""What a request's tensors say about the grammar that its output is held to."""

from __future__ import annotations

from typing import Final

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.request import Guide, GuideKind
from trierarch.python_backend.triton.inputs import Inputs

KIND: Final = "guided_decoding_guide_type"
TEXT: Final = "guided_decoding_guide"


def read_guide(inputs: Inputs) -> Guide | None:
    """The contract's guide of a row; None where neither tensor says anything. Empty strings say nothing.

    Raises:
        InvalidRequest: an unknown type, a text without a type, or a type without the text that it needs.
    """
    kind, text = inputs.text(KIND) or "", inputs.text(TEXT) or ""
    if not kind:
        if text:
            raise InvalidRequest(KIND, None, f"{TEXT} needs a type: {', '.join(GuideKind)}")
        return None
    if kind not in list(GuideKind):
        raise InvalidRequest(KIND, kind, f"known are {', '.join(GuideKind)}")
    return Guide(GuideKind(kind), text)
