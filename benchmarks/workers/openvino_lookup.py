"""OpenVINO GenAI with its prompt look-up decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import openvino_genai as genai

from trierarch.benchmarks.workers.openvino import OpenVINOWorker
from trierarch.benchmarks.workers.protocol import serve

NUM_DRAFT_TOKENS: Final = 5
MAX_NGRAM: Final = 3
"""Both as its own sample has them."""


class OpenVINOLookupWorker(OpenVINOWorker):
    """Looks n-grams up in the sequence."""

    properties: ClassVar[Mapping[str, Any]] = {"prompt_lookup": True}

    def generation_config(self, num_output_tokens: int) -> genai.GenerationConfig:
        """See OpenVINOWorker.generation_config."""
        config = super().generation_config(num_output_tokens)
        config.num_assistant_tokens = NUM_DRAFT_TOKENS
        config.max_ngram_size = MAX_NGRAM
        return config


if __name__ == "__main__":
    serve(OpenVINOLookupWorker)
