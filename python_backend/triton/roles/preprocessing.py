"""preprocessing: text to token ids."""

from __future__ import annotations

from typing import Any

from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.text.tokenizer import Tokenizer
from trierarch.python_backend.triton.inputs import Array
from trierarch.python_backend.triton.model_context import ModelContext
from trierarch.python_backend.triton.responses import NamedArray
from trierarch.python_backend.triton.tokenization import preprocess
from trierarch.python_backend.triton.triton_channel import answer_each


class Preprocessing:
    """Answers each request at once."""

    def __init__(self, context: ModelContext) -> None:
        """Read the engine's manifest and tokenizer."""
        self._manifest = EngineManifest.load(context.engine)
        self._tokenizer = Tokenizer.load(context.engine)
        self._add_special_tokens = context.parameters.add_special_tokens

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        return answer_each(requests, self._answer)

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, arrays: dict[str, Array]) -> list[NamedArray]:
        return preprocess(arrays, self._tokenizer, self._manifest, self._add_special_tokens)
