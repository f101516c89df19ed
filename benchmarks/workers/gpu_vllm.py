"""vLLM on a GPU, with random weights of a configuration's shape; its precision is what the environment says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import vllm

from trierarch.benchmarks.workers.gpu_settings import FP8_VARIABLE, LENGTH_VARIABLE
from trierarch.benchmarks.workers.protocol import Ready, TokenIds, serve


class GpuVLLMWorker:
    """One LLM object."""

    def __init__(self, model: Path) -> None:
        """Make and compile the model that `model`'s config.json describes."""
        self._options: dict[str, Any] = {"dtype": "bfloat16", "gpu_memory_utilization": 0.9}
        if FP8_VARIABLE in os.environ:
            self._options |= {"quantization": "fp8", "kv_cache_dtype": "fp8"}
        self._llm = vllm.LLM(
            str(model),
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=int(os.environ[LENGTH_VARIABLE]),
            max_num_seqs=1024,
            enable_prefix_caching=False,
            disable_log_stats=True,
            **self._options,
        )

    @property
    def ready(self) -> Ready:
        """The release."""
        return Ready(vllm.__version__, self._options)

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """Hand all prompts over in one call."""
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=num_output_tokens, ignore_eos=True, detokenize=False)
        asks = [{"prompt_token_ids": prompt} for prompt in prompts]
        results = self._llm.generate(asks, sampling, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]

    def close(self) -> None:
        """Free the engine."""
        del self._llm


if __name__ == "__main__":
    serve(GpuVLLMWorker)
