"""llmapi: the tensors of TensorRT-LLM's last model, for clients that know those."""

from __future__ import annotations

from typing import Final

from trierarch.python_backend.triton.llmapi import INPUTS, tell_stopped, translated
from trierarch.python_backend.triton.model_context import ModelContext
from trierarch.python_backend.triton.roles.translating import Translating

_FORWARDED: Final = frozenset(INPUTS.values()) - {"stop"}


class Llmapi(Translating):
    """Streams the text so far."""

    def __init__(self, context: ModelContext) -> None:
        """See Translating."""
        super().__init__(
            context, "llmapi", forwarded=_FORWARDED, accumulates=True, translate=translated, tell_stopped=tell_stopped
        )
