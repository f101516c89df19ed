"""postprocessing: token ids to text."""

from __future__ import annotations

from typing import Any

from trierarch.python_backend.text.tokenizer import Tokenizer
from trierarch.python_backend.triton.inputs import Array
from trierarch.python_backend.triton.model_context import ModelContext
from trierarch.python_backend.triton.responses import NamedArray
from trierarch.python_backend.triton.tokenization import postprocess
from trierarch.python_backend.triton.triton_channel import answer_each


class Postprocessing:
    """Answers each request at once."""

    def __init__(self, context: ModelContext) -> None:
        """Read the engine's tokenizer."""
        self._tokenizer = Tokenizer.load(context.engine)
        self._skip_special_tokens = context.parameters.skip_special_tokens

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        return answer_each(requests, self._answer)

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, arrays: dict[str, Array]) -> list[NamedArray]:
        return postprocess(arrays, self._tokenizer, self._skip_special_tokens)
