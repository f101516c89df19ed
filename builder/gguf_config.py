"""A GGUF file's metadata, said as the Hugging Face configuration that the table of architectures reads.

Key names: the GGUF specification (ggml-org/ggml, docs/gguf.md). What a kind of file leaves unsaid is what llama.cpp
fixes for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from trierarch.builder.errors import CheckpointError

Metadata = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """How one `general.architecture` is read."""

    architecture: str
    """Hugging Face's name for it."""
    is_interleaved: bool = False
    """Whether rows of q and k are stored for rotation of neighbours, not of halves."""
    fixed: Mapping[str, Any] | None = None
    """Configuration that the file leaves unsaid."""


KINDS: Final[Mapping[str, Kind]] = {
    "llama": Kind("LlamaForCausalLM", is_interleaved=True),
    "smollm3": Kind("SmolLM3ForCausalLM", is_interleaved=True, fixed={"no_rope_layer_interval": 4}),
    "qwen2": Kind("Qwen2ForCausalLM"),
    "qwen3": Kind("Qwen3ForCausalLM"),
    "qwen3moe": Kind("Qwen3MoeForCausalLM", fixed={"norm_topk_prob": True}),
    "phi3": Kind("Phi3ForCausalLM"),
    "gemma2": Kind("Gemma2ForCausalLM"),
    "gemma3": Kind("Gemma3ForCausalLM", fixed={"attn_logit_softcapping": None}),
}

_PLAIN_KEYS: Final = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.freq_base_swa": "rope_local_base_freq",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_GEMMA_27B_LAYERS: Final = {"gemma2": 46, "gemma3": 62}


def find_kind(metadata: Metadata) -> tuple[str, Kind]:
    """The row for a file's `general.architecture`.

    Raises:
        CheckpointError: it is missing or not in the table, or the file is one of several parts.
    """
    name = metadata.get("general.architecture")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or kind is None:
        raise CheckpointError(f"general.architecture is {name!r}: this builder reads {', '.join(KINDS)}")
    if metadata.get("split.count", 1) > 1:
        raise CheckpointError("the GGUF is split in parts; join them with: llama-gguf-split --merge")
    if name == "llama" and metadata.get("llama.expert_count"):
        return name, Kind("MixtralForCausalLM", is_interleaved=True)
    return name, kind


def synthesize_config(
    metadata: Metadata, vocab_size: int, tensor_names: set[str], rope_factors: Mapping[str, list[float]]
) -> dict[str, Any]:
    """The `config.json` that this file stands for.

    `rope_factors` holds the file's own divisors of the frequencies: `freqs`, or `short` and `long`.
    """
    name, kind = find_kind(metadata)
    values = {key.removeprefix(f"{name}."): value for key, value in metadata.items() if key.startswith(f"{name}.")}
    config: dict[str, Any] = {
        "architectures": [kind.architecture],
        "vocab_size": vocab_size,
        "tie_word_embeddings": "output.weight" not in tensor_names,
        "attention_bias": "blk.0.attn_q.bias" in tensor_names,
        **{ours: values[theirs] for theirs, ours in _PLAIN_KEYS.items() if theirs in values},
        **(kind.fixed or {}),
    }
    heads = config.get("num_attention_heads")
    if not isinstance(heads, int) or heads < 1 or not isinstance(config.get("hidden_size"), int):
        raise CheckpointError(f"{name}.attention.head_count and {name}.embedding_length must be positive integers")
    config.setdefault("head_dim", config["hidden_size"] // heads)
    if values.get("attention.value_length", config["head_dim"]) != config["head_dim"]:
        raise CheckpointError(f"{name}.attention.value_length differs from key_length: such heads are not supported")
    if name in _GEMMA_27B_LAYERS:
        is_27b = config.get("num_hidden_layers") == _GEMMA_27B_LAYERS[name]
        config["query_pre_attn_scalar"] = config["hidden_size"] // heads if is_27b else config["head_dim"]
    if "rope.dimension_count" in values and not name.startswith("gemma"):
        config["partial_rotary_factor"] = values["rope.dimension_count"] / config["head_dim"]
    config["rope_scaling"] = _rope_scaling(values, rope_factors)
    return config


def _rope_scaling(values: Mapping[str, Any], rope_factors: Mapping[str, list[float]]) -> dict[str, Any] | None:
    if "freqs" in rope_factors:
        # llama.cpp stores what the llama3 rule divides each frequency by: LongRoPE with one list and no attention factor.
        freqs = rope_factors["freqs"]
        return {"rope_type": "longrope", "short_factor": freqs, "long_factor": freqs, "attention_factor": 1.0}
    if "long" in rope_factors:
        return {
            "rope_type": "longrope",
            "short_factor": rope_factors.get("short"),
            "long_factor": rope_factors["long"],
            "attention_factor": values.get("rope.scaling.attn_factor"),
        }
    kind = values.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    factor, attention_factor = values.get("rope.scaling.factor"), values.get("rope.scaling.attn_factor")
    if kind == "yarn" and attention_factor and factor:
        attention_factor *= 0.1 * math.log(factor) + 1.0  # GGUF keeps what comes on top of YaRN's own
    return {
        "rope_type": kind,
        "factor": factor,
        "attention_factor": attention_factor,
        "beta_fast": values.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": values.get("rope.scaling.yarn_beta_slow"),
    }
