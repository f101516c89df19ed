"""vLLM with its speculation by n-grams of the sequence itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trierarch.benchmarks.workers.protocol import serve
from trierarch.benchmarks.workers.vllm import VLLMWorker


class VLLMNgramWorker(VLLMWorker):
    """Looks up to four tokens up and drafts the four behind them."""

    options: ClassVar[Mapping[str, Any]] = {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}
    }


if __name__ == "__main__":
    serve(VLLMNgramWorker)
