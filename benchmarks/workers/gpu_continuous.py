"""Hugging Face transformers' continuous batching (`generate_batch`, transformers 5) on a GPU."""

from __future__ import annotations

from transformers import GenerationConfig

from trierarch.benchmarks.workers.gpu_transformers import GpuTransformersWorker
from trierarch.benchmarks.workers.protocol import TokenIds, serve


class GpuContinuousWorker(GpuTransformersWorker):
    """Every prompt a request; how many run at once is its own choice."""

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """Hand all prompts over in one call."""
        config = GenerationConfig(
            max_new_tokens=num_output_tokens,
            min_new_tokens=num_output_tokens,
            do_sample=False,
            eos_token_id=-1,  # no token is this one
            pad_token_id=0,
        )
        results = self._model.generate_batch(inputs=prompts, generation_config=config)
        return [list(result.generated_tokens) for result in results.values()]


if __name__ == "__main__":
    serve(GpuContinuousWorker)
