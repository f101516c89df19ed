"""What transformers answers on the demo checkpoint: it reads the GGUF by itself, in float32, greedily."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

NUM_TOKENS = 128


class Reference:
    """transformers' model and tokenizer, loaded from the same GGUF file that the builder reads."""

    def __init__(self, gguf: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
                dtype=torch.float32,
            ).eval()

    def encode(self, question: str) -> list[int]:
        """The question in the checkpoint's chat template."""
        messages = [{"role": "user", "content": question}]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        token_ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return token_ids

    @torch.inference_mode()
    def generate(self, prompt: list[int], num_tokens: int = NUM_TOKENS) -> tuple[list[int], float]:
        """Greedy tokens, going on after end tokens, and the least lead a chosen token's logit had over the next."""
        token_ids, lead, cache = [], float("inf"), None
        inputs = torch.tensor([prompt])
        for _ in range(num_tokens):
            output = self._model(inputs, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            best = output.logits[0, -1].topk(2)
            lead = min(lead, float(best.values[0] - best.values[1]))
            token_ids.append(int(best.indices[0]))
            inputs = best.indices[:1][None]
        return token_ids, lead
