"""vLLM on the CPU, in one process: its usual three leave one of two cores idle and are a third slower."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import vllm

from trierarch.benchmarks.workers.protocol import (
    MAX_BATCH_SIZE,
    MAX_SEQ_LEN,
    NUM_THREADS,
    TORCH_DTYPE,
    Ready,
    TokenIds,
    serve,
)


class VLLMWorker:
    """One LLM object."""

    options: ClassVar[Mapping[str, Any]] = {}
    """Of the LLM, beside its limits."""

    def __init__(self, model: Path) -> None:
        """Load and compile the checkpoint `model`."""
        self._llm = vllm.LLM(
            str(model),
            dtype=TORCH_DTYPE,
            max_model_len=MAX_SEQ_LEN,
            max_num_seqs=MAX_BATCH_SIZE,
            enable_prefix_caching=True,
            distributed_executor_backend="uni",
            disable_log_stats=True,
            **self.options,
        )

    @property
    def ready(self) -> Ready:
        """The release."""
        settings = {"threads": NUM_THREADS, "distributed_executor_backend": "uni", "dtype": TORCH_DTYPE, **self.options}
        return Ready(vllm.__version__, settings)

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """Hand all prompts over in one call."""
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=num_output_tokens, ignore_eos=True, detokenize=False)
        asks = [{"prompt_token_ids": prompt} for prompt in prompts]
        results = self._llm.generate(asks, sampling, use_tqdm=False, **self.asked(len(prompts)))
        return [list(result.outputs[0].token_ids) for result in results]

    def asked(self, num_prompts: int) -> Mapping[str, Any]:
        """More options of the next `generate`, of so many prompts."""
        return {}

    def close(self) -> None:
        """Free the engine."""
        del self._llm


if __name__ == "__main__":
    serve(VLLMWorker)
