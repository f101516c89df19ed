"""Hugging Face transformers on a GPU: `generate` over a batch, random weights of a configuration's shape."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from trierarch.benchmarks.workers.protocol import Ready, TokenIds, serve


class GpuTransformersWorker:
    """One AutoModelForCausalLM."""

    def __init__(self, model: Path) -> None:
        """Make the model that `model`'s config.json describes where it computes."""
        config = transformers.AutoConfig.from_pretrained(model)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.device(self._device):
            self._model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        self._model.generation_config.eos_token_id = None

    @property
    def ready(self) -> Ready:
        """The release, and torch's."""
        return Ready(transformers.__version__, {"torch": torch.__version__, "dtype": "bfloat16"})

    def generate(self, prompts: list[TokenIds], num_output_tokens: int) -> list[TokenIds]:
        """One batch of prompts of one length."""
        token_ids = torch.tensor(prompts, device=self._device)
        with torch.inference_mode():
            outputs = self._model.generate(
                token_ids,
                attention_mask=torch.ones_like(token_ids),
                max_new_tokens=num_output_tokens,
                min_new_tokens=num_output_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        result: list[TokenIds] = outputs[:, token_ids.shape[1] :].tolist()
        return result

    def close(self) -> None:
        """Free the model."""
        del self._model


if __name__ == "__main__":
    serve(GpuTransformersWorker)
