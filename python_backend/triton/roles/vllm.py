"""vllm: the tensors of Triton's vLLM backend, for clients that know those."""

from __future__ import annotations

from trierarch.python_backend.triton.model_context import ModelContext
from trierarch.python_backend.triton.roles.translating import Translating
from trierarch.python_backend.triton.vllm import FORWARDED, translated


class Vllm(Translating):
    """Streams what is new."""

    def __init__(self, context: ModelContext) -> None:
        """See Translating."""
        super().__init__(context, "vllm", forwarded=FORWARDED, translate=translated)
