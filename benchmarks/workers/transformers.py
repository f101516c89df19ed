"""Hugging Face transformers: `generate` over a left-padded batch, eager, with its dynamic cache. It has no prefix cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers

from trierarch.benchmarks.workers.protocol import NUM_THREADS, TORCH_DTYPE, Ready, TokenIds, serve


class TransformersWorker:
    """One AutoModelForCausalLM."""

    options: ClassVar[Mapping[str, Any]] = {}
    """Of `generate`, beside what makes it greedy."""

    def __init__(self, model: Path) -> None:
        """Load the checkpoint `model`."""
        torch.set_num_threads(NUM_THREADS)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, TORCH_DTYPE)).eval()
        self._model.generation_config.eos_token_id = None

    @property
    def ready(self) -> Ready:
        """The release, and torch's."""
        settings = {"threads": NUM_THREADS, "torch": torch.__version__, "dtype": TORCH_DTYPE, **self.options}
        return Ready(transformers.__version__, settings)

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """One padded batch."""
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        token_ids = torch.tensor([[0] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        with torch.inference_mode():
            outputs = self._model.generate(
                token_ids,
                attention_mask=mask,
                max_new_tokens=num_output_tokens,
                min_new_tokens=num_output_tokens,
                do_sample=False,
                pad_token_id=0,
                **self.options,
                **self.asked(len(prompts)),
            )
        result: list[TokenIds] = outputs[:, longest:].tolist()
        return result

    def asked(self, num_prompts: int) -> Mapping[str, Any]:
        """More options of the next `generate`, of so many prompts."""
        return {}

    def close(self) -> None:
        """Free the model."""
        del self._model


if __name__ == "__main__":
    serve(TransformersWorker)
