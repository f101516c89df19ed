"""What quantising for TensorRT-LLM costs: the model as the format computes it, beside the unquantised one, by transformers.

Not by TensorRT-LLM, which needs its GPU. Where nvidia-modelopt quantised the model, it imitates the format itself; elsewhere
`weight_only` and `dequantized` do. Keys and values in FP8 are rounded as they enter the cache, at scale 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from trierarch.builder.accuracy import measure_accuracy
from trierarch.builder.accuracy_gate import refuse_if_worse, refuse_without_reference
from trierarch.builder.errors import ConfigError
from trierarch.builder.evaluation_text import MIN_TOKENS, EvaluationText
from trierarch.builder.manifest import Accuracy
from trierarch.builder.progress import Progress
from trierarch.builder.tensorrt_llm.spec import Spec


def halves(text: EvaluationText) -> tuple[EvaluationText, EvaluationText]:
    """A text's odd windows, to calibrate on, and its even ones, to measure on: never on what was calibrated on.

    Raises:
        ConfigError: there is too little for both.
    """
    calibrating, measured = EvaluationText(text.name, text.windows[::2]), EvaluationText(text.name, text.windows[1::2])
    if measured.num_tokens < MIN_TOKENS:
        raise ConfigError(
            f"accuracy_text is {text.name!r}: half of it calibrates, and the other has {measured.num_tokens} tokens to "
            f"predict, which tell too little; give a text with twice {MIN_TOKENS} or more"
        )
    return calibrating, measured


def measure(spec: Spec, text: EvaluationText, reference: Any, quantized: Any, progress: Progress) -> Accuracy:
    """Compare two transformers models over `text`.

    Raises:
        ConfigError: quantization costs more than `spec` allows, or the model is broken without it.
    """
    has_fp8_kv = spec.kv_algo is not None
    accuracy = measure_accuracy(
        text, model_logits(reference, text.windows), model_logits(quantized, text.windows, has_fp8_kv), progress
    )
    refuse_without_reference(accuracy, spec.dtype, "choose another --dtype")
    what = " with ".join(one for one in (spec.quant_algo, has_fp8_kv and "FP8 keys and values") if one)
    refuse_if_worse(accuracy, spec.config.max_perplexity_increase, f"{what} raises", "choose another --quantization, ")
    return accuracy


@torch.inference_mode()
def model_logits(model: Any, windows: Sequence[Sequence[int]], has_fp8_kv: bool = False) -> Iterator[torch.Tensor]:
    """Of a transformers model, as an accuracy_gate.Evaluator yields them."""
    for window in windows:
        options: dict[str, Any] = (
            {"past_key_values": _fp8_cache(), "use_cache": True} if has_fp8_kv else {"use_cache": False}
        )
        tokens = torch.tensor([window], device=model.device)
        yield model(tokens, **options).logits[0, :-1].float().cpu()


def _fp8_cache() -> Any:
    from transformers import DynamicCache

    class Fp8Cache(DynamicCache):  # type: ignore[misc]  # no type information
        """Keys and values that come back as E4M3 leaves them."""

        def update(self, keys: torch.Tensor, values: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            return super().update(_e4m3(keys), _e4m3(values), *arguments, **options)

    return Fp8Cache()


def _e4m3(values: torch.Tensor) -> torch.Tensor:
    largest = torch.finfo(torch.float8_e4m3fn).max
    return values.clamp(-largest, largest).to(torch.float8_e4m3fn).to(values.dtype)
